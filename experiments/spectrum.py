"""The Hessian's spectrum along training: a bulk, and about as many outliers as classes.

    python -m experiments.spectrum
    python -m experiments.spectrum --config=configs/spectrum_small.py --config.classes=3,5
    python -m experiments.spectrum --config.data=mnist5k --config.train_size=1000

Trains a classifier on the first C classes of a data set for several C and losses, and records the
spectral density by stochastic Lanczos quadrature and the top eigenvalues. Sagun, Evci, Guney,
Dauphin, Bottou (2017), Papyan (2018) and Ghorbani, Krishnan, Xiao (2019) find about C eigenvalues
apart from the bulk: C where the loss sees each output by itself, C - 1 under softmax, which does
not see their mean.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Float, Int, PRNGKeyArray

import driftlab
from driftlab import data, measures, models, sampling
from driftlab.data.dataset import Batch
from driftlab.data.splits import balanced_subset
from driftlab.measures.sharpness import sharpness
from driftlab.measures.spectrum import hessian_trace, spectral_density
from driftlab.plot.density import spectra
from driftlab.suggestions import nearest
from driftlab.sweep.lane import HParams
from experiments import flags, report

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Loss -> outliers less classes: softmax does not change with the mean of the outputs.
EXPECTED = {"cross_entropy": -1, "squared_error": 0}


class Problem(NamedTuple):
    """A classifier of some classes.

    Attributes:
      objective: what is minimised.
      initialize: `key -> params`.
      dimension: the number of parameters.
    """

    objective: driftlab.Objective
    initialize: Callable[[PRNGKeyArray], Any]
    dimension: int


def make_problem(config: Any, classes: int, loss: str) -> Problem:
    """The classifier of the first classes of a config's data.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/spectrum.py.
      classes: C.
      loss: one of `EXPECTED`.

    Returns:
      The problem.

    Raises:
      ValueError: if there are fewer classes or examples, or no such loss, model or data.
    """
    if loss not in EXPECTED:
        raise ValueError(f"there is no loss {loss!r} here: {nearest(loss, EXPECTED)}")
    loaded = data.load(
        config.data, normalization=config.normalization, data_dir=flags.DATA_DIR.value
    )
    if not 2 <= classes <= loaded.num_classes:
        raise ValueError(f"classes={classes} must be from 2 to {loaded.num_classes}.")
    labels = np.asarray(loaded.train.targets)
    chosen = np.flatnonzero(labels < classes)
    if config.train_size:
        if config.train_size > len(chosen):
            raise ValueError(
                f"train_size={config.train_size}, but {classes} classes have {len(chosen)} "
                "examples."
            )
        chosen = chosen[balanced_subset(labels[chosen], config.train_size, (0, 0))]
    inputs, targets = jnp.asarray(loaded.train.inputs[chosen], float), labels[chosen]
    if loss == "squared_error":
        targets = np.eye(classes)[targets].astype(inputs.dtype)
    arguments = flags.parse_arguments(config.model_args, "model_args")
    model = models.create(config.model, classes, **arguments)
    batches = (
        sampling.shuffled_epochs(config.batch_size) if config.batch_size else sampling.full_batch()
    )
    objective = driftlab.Objective(
        getattr(models, loss)(models.apply_function(model)),
        Batch(inputs, jnp.asarray(targets)),
        batches,
    )

    def initialize(key: PRNGKeyArray) -> Any:
        return models.initialize(model, key, inputs)

    shapes = jax.tree.leaves(jax.eval_shape(initialize, jax.random.key(0)))
    return Problem(objective, initialize, sum(leaf.size for leaf in shapes))


def make_problems(config: Any) -> dict[tuple[str, int], Problem]:
    """Every problem of a config, by loss and number of classes.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/spectrum.py.

    Returns:
      `(loss, classes)` -> problem.

    Raises:
      ValueError: if the config's text does not describe them.
    """
    numbers = _numbers(config.classes)
    losses = [name.strip() for name in config.loss.split(",")]
    return {(loss, c): make_problem(config, c, loss) for loss in losses for c in numbers}


def outlier_count(eigenvalues: Float[np.ndarray, " k"]) -> tuple[int, float, float]:
    """How many of the top eigenvalues stand apart: those above the largest gap.

    The gap is the ratio of neighbours, `lambda_i / lambda_{i+1}`, which no unit and no threshold
    enters. k is the same for every number of classes, so the count is free to be any from 1 to
    k - 1.

    Args:
      eigenvalues: the top k, descending.

    Returns:
      The count, the ratio at its gap, and the largest ratio elsewhere: near it, the count says
      little. `(0, nan, nan)` without two positive eigenvalues.
    """
    positive = eigenvalues[eigenvalues > 0]
    if len(positive) < 3:
        return 0, float("nan"), float("nan")
    ratios = positive[:-1] / positive[1:]
    order = np.argsort(ratios)
    return int(order[-1]) + 1, float(ratios[order[-1]]), float(ratios[order[-2]])


def outliers(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """`outlier_count` of every record.

    Args:
      dataset: the sweep's result.

    Returns:
      `count`, `gap` and `runner_up`, over the axes and `step`.
    """
    values = dataset["hessian_eigenvalues"]
    flat = values.values.reshape(-1, values.shape[-1])
    found = np.array([outlier_count(row) for row in flat]).T.reshape(3, *values.shape[:-1])
    like = values.isel({values.dims[-1]: 0}, drop=True)
    named = zip(("count", "gap", "runner_up"), found, strict=True)
    result = like.to_dataset(name="count")
    return result.assign({name: like.copy(data=array) for name, array in named})


def tables(
    dataset: "xarray.Dataset", problems: dict[tuple[str, int], Problem]
) -> dict[str, list[dict[str, Any]]]:
    """The claim against what was measured, and the trace by two routes.

    Args:
      dataset: the sweep's result.
      problems: those of the config.

    Returns:
      Heading -> rows, medians over seeds.
    """
    found = outliers(dataset)
    claims, traces = [], []
    for (loss, classes), problem in problems.items():
        for rate in dataset.learning_rate.values:
            where = {"loss_name": loss, "classes": classes, "learning_rate": rate}
            here, lanes = found.sel(where), dataset.sel(where)
            expected = classes + EXPECTED[loss]
            early, ok = here.isel(step=1), lanes.verdict.values == "ok"
            count = early["count"].values
            row = {"loss": loss, "classes": classes}
            if dataset.sizes["learning_rate"] > 1:
                row["learning rate"] = float(rate)
            claims.append(
                row
                | {
                    "claim": expected,
                    f"at step {int(early.step)}": _set(count),
                    "gap": float(early.gap.median()),
                    "next gap": float(early.runner_up.median()),
                    "rank of the claim's gap": _set(_ranks(lanes, expected)),
                    "at step 0": _set(here["count"].isel(step=0).values),
                    f"at step {int(here.step[-1])}": _set(here["count"].isel(step=-1).values),
                    "holds": "yes" if ok.all() and (count == expected).all() else "no",
                }
            )
            nodes, weights = lanes.density_nodes.values, lanes.density_weights.values
            samples = problem.dimension * (weights * nodes).sum(-1)
            mean = samples.mean(-1)
            error = np.hypot(
                samples.std(-1, ddof=1) / samples.shape[-1] ** 0.5, lanes.hessian_trace_error
            )
            away = abs(mean - lanes.hessian_trace.values) / error.values
            traces.append(
                row
                | {
                    "parameters": problem.dimension,
                    "trace, Hutchinson": float(lanes.hessian_trace.isel(step=-1).median()),
                    "trace, quadrature": float(np.median(mean[:, -1])),
                    "standard errors apart": float(np.median(away)),
                    "largest": float(away.max()),
                    "records": away.size,
                }
            )
    title = "Eigenvalues above the largest gap of the top "
    return {
        f"{title}{dataset.sizes['hessian_eigenvalues_0']}": claims,
        "The trace, by two routes": traces,
    }


def draw(
    dataset: "xarray.Dataset", problems: dict[tuple[str, int], Problem]
) -> dict[str, "Figure"]:
    """A grid of panels a loss and learning rate, of the first seed.

    Args:
      dataset: the sweep's result.
      problems: those of the config.

    Returns:
      File name without ending -> figure.
    """
    found = outliers(dataset).isel(seed=0)["count"]
    steps = dataset.step.values
    shown = np.unique(steps[[0, 1, len(steps) // 2, -1]]).tolist()
    figures = {}
    for loss in dataset.loss_name.values:
        for index, rate in enumerate(dataset.learning_rate.values):
            where = {"loss_name": loss, "learning_rate": rate}
            suffix = f"_{index}" if dataset.sizes["learning_rate"] > 1 else ""
            figures[f"spectrum_{loss}{suffix}"] = spectra(
                dataset.isel(seed=0).sel(where),
                [problems[str(loss), int(c)].dimension for c in dataset.classes.values],
                "classes",
                found.sel(where),
                steps=shown,
                title=str(loss).replace("_", " ").capitalize(),
            )
    return figures


def run(
    config: Any, problems: dict[tuple[str, int], Problem], out: Path | None = None, **options: Any
) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/spectrum.py.
      problems: its problems.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)},
        {
            "loss_name": dict.fromkeys(loss for loss, _ in problems),
            "classes": dict.fromkeys(classes for _, classes in problems),
        },
    )

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        problem = problems[hparams["loss_name"], hparams["classes"]]
        tx = optax.sgd(hparams["learning_rate"], config.momentum or None)
        return driftlab.descent(tx, problem.objective), problem.initialize(key)

    return driftlab.sweep(
        build,
        grid,
        config.steps,
        measures=[
            measures.loss,
            sharpness(config.eigenvalues),
            spectral_density(config.probes, config.lanczos_steps),
            hessian_trace(config.trace_products),
        ],
        record_every=config.record_every,
        seed=config.seed,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    out = flags.run_folder(config, "spectrum")
    problems = make_problems(config)
    dataset = flags.run_shard(partial(run, config, problems), out)
    if dataset is None:
        return
    found = tables(dataset, problems)
    title = "The spectrum of the Hessian"
    report.write_report(out, title, dataset, found, draw(dataset, problems))
    report.print_tables(out, found)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in str(text).split(",")]
    except ValueError:
        raise ValueError(f"classes={text!r}: give a comma list of whole numbers.") from None
    return numbers


def _ranks(lanes: "xarray.Dataset", count: int) -> Int[np.ndarray, " seed"]:
    """Where the gap below the first `count` eigenvalues ranks at the early record; 1: largest."""
    values = lanes["hessian_eigenvalues"].isel(step=1).values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values[:, 1:] > 0, values[:, :-1] / values[:, 1:], 0)
    return (ratios > ratios[:, count - 1 : count]).sum(1) + 1


def _set(counts: Int[np.ndarray, " seed"]) -> str:
    """The counts of all seeds, as "9" where they agree and as "9, 10, 9" where not."""
    numbers = [int(count) for count in counts]
    return str(numbers[0]) if len(set(numbers)) == 1 else ", ".join(map(str, numbers))


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("spectrum.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
