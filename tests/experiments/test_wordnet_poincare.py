"""The embedding of a hierarchy: a small tree is recovered, and the binary leaves its files."""

import json

import jax
import numpy as np
import pytest

from configs import wordnet_poincare_small
from driftlab.data.dataset import DataError
from experiments import wordnet_poincare, wordnet_poincare_models, wordnet_poincare_report


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    path = tmp_path_factory.mktemp("edges") / "tree.tsv"
    # A binary tree: word 1 the root, word n below word n // 2.
    path.write_text("".join(f"w{n}\tw{n // 2}\n" for n in range(2, 32)))
    return path


@pytest.fixture(scope="module")
def config(edges, parsed_flags):
    config = wordnet_poincare_small.get_config()
    config.relations = str(edges)
    config.negatives = 5
    config.burn_in_epochs = 5
    config.learning_rates = "0.03,0.3"
    config.epochs = 120
    config.record_epochs = 60
    config.disc_epochs = 20
    return config


@pytest.fixture(scope="module")
def task(config):
    return wordnet_poincare_models.make_task(config)


def test_a_small_tree_is_recovered(config, task, tmp_path):
    assert (len(task.relations.names), len(task.relations.pairs)) == (31, 98)
    dataset = wordnet_poincare.run(config, task, tmp_path / "run", progress=False)
    found = wordnet_poincare_report.outcome(dataset, task)
    assert found.epoch.values.tolist() == [0, 60, 120]
    first, last = (found.isel(step=i, learning_rate=-1) for i in (0, -1))
    assert (last.probe_loss < first.probe_loss / 3).all()
    # Random points have 0.2.
    assert (last.mean_average_precision > 0.8).all()
    best = wordnet_poincare_report.write_embeddings(config, task, found, tmp_path / "run")
    rates = wordnet_poincare_report.best_rates(found)
    assert set(best) == set(rates) == {
        ("rsgd", "retraction"), ("radam", "retraction"),
    }  # fmt: skip
    # The file holds the lane that the scores are of: those of the sweep's own last record.
    for (name, move), scores in best.items():
        lane = found.sel(optimizer=name, move=move, learning_rate=rates[name, move]).isel(step=-1)
        np.testing.assert_allclose(scores["mean_rank"], lane.mean_rank.item(), rtol=1e-6)
        written = (tmp_path / "run" / f"embedding_{name}_{move}.tsv").read_text().splitlines()
        assert len(written) == 31
        assert written[0].split("\t")[0] == "w2"
    claims = wordnet_poincare_report.tables(config, task, found, best)["Claims"]
    assert len(claims) == 1
    assert not any("Kiela" in row["claim"] for row in claims)


def test_held_out_pairs_are_not_trained_on(config):
    other = config.copy_and_resolve_references()
    other.held_out = 0.1
    task = wordnet_poincare_models.make_task(other)
    assert len(task.held_out.pairs) == 10
    score = jax.jit(wordnet_poincare_models.scores(other, task, 0))
    found = score(jax.random.normal(jax.random.key(0), (31, 5)) / 10)
    assert set(found) == {
        "mean_rank", "mean_average_precision", "link_mean_rank", "link_mean_average_precision",
    }  # fmt: skip
    assert all(np.isfinite(float(value)) for value in found.values())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("relations", "animals", r"relations='animals': neither a file"),
        ("batch_size", 1000, r"batch_size=1000 must be between 1 and the 98 pairs"),
        ("epochs", 0, r"epochs=0 must be"),
        ("probed_pairs", -1, r"probed_pairs=-1 must be 0 or more"),
        ("curvature", 1.0, r"curvature=1.0 must be negative"),
        ("held_out", 0.9, r"touch no leaf and no root"),
    ],
)
def test_bad_fields_are_refused(config, field, value, message):
    other = config.copy_and_resolve_references()
    other[field] = value
    with pytest.raises(ValueError, match=message):
        wordnet_poincare_models.make_task(other)


def test_bad_lists_are_refused(config, task):
    for field, message in (("optimizers", "there is no 'adam'"), ("moves", "there is no 'adam'")):
        other = config.copy_and_resolve_references()
        other[field] = "adam"
        with pytest.raises(ValueError, match=message):
            wordnet_poincare.run(other, task)


def test_a_cycle_is_refused(config, tmp_path):
    path = tmp_path / "cycle.tsv"
    path.write_text("a\tb\nb\ta\n")
    other = config.copy_and_resolve_references()
    other.relations = str(path)
    with pytest.raises(DataError, match="cycle"):
        wordnet_poincare_models.make_task(other)


def test_the_binary_leaves_a_run_and_redraws_it(edges, tmp_path, run_experiment):
    for again in (False, True):
        done = run_experiment(
            "wordnet_poincare", "--config=configs/wordnet_poincare_small.py",
            f"--config.relations={edges}", "--config.epochs=4", "--config.record_epochs=2",
            "--learning_rates=0.1,1", "--config.disc_epochs=2", f"--out={tmp_path / 'run'}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["tables"]) == {"Claims", "Best rates", "Relations"}
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 4
    assert len(list((tmp_path / "run").glob("embedding_*.tsv"))) == 2
