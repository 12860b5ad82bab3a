import itertools
import shutil

import numpy as np
import pytest
import xarray

from driftlab import Grid, open_run, sweep
from driftlab.sweep import FolderError, Shard, engine, merge, parse_shard
from driftlab.sweep.folder import CONFIG, FINISHED, PROGRESS, read_json, write_json
from driftlab.sweep.launch import is_finished, shard_lanes

QUIET = {"progress": False, "devices": 1}
GRID = Grid({"learning_rate": [0.01, 0.05, 0.1, 0.15, 0.5], "seed": 2})


def test_parse():
    assert parse_shard("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"
    assert Shard(2, 8).folder_name == "shard-2-of-8"


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "", "1", "1/2/3", "-1/3", "1.0/3", "0/0"])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"a shard is k/n with 1 <= k <= n"):
        parse_shard(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_a_partition_in_whole_chunks(count):
    grid = Grid({"learning_rate": np.arange(1, 11)}, {"width": [1, 2]})
    widths = [4, 2]
    shares = [shard_lanes(grid, widths, Shard(k, count)) for k in range(1, count + 1)]
    found = [(point, lane) for share in shares for point, lanes in share for lane in lanes]
    assert sorted(found) == list(itertools.product(range(2), range(10)))
    for point, lanes in itertools.chain(*shares):
        chunks = np.split(lanes, np.flatnonzero(lanes % widths[point] == 0)[1:])
        for chunk in chunks:
            assert (np.diff(chunk) == 1).all()
            assert len(chunk) == widths[point] or chunk[-1] == 9


def test_more_shards_than_chunks():
    with pytest.raises(ValueError, match="3 chunks of lanes, too few for 4 shards"):
        shard_lanes(Grid({"seed": 9}), [3], Shard(1, 4))


def run(problems, lanes, **options):
    options = {"measures": problems.MEASURES, "lanes": lanes, "record_every": 3} | options
    return sweep(problems.quadratic, GRID, 20, **options, **QUIET)


@pytest.fixture(scope="module")
def folders(problems, tmp_path_factory):
    """Three shards in one folder."""
    folder = tmp_path_factory.mktemp("shards")
    for k in (1, 2, 3):
        part = run(problems, "chunk:2", shard=f"{k}/3", out=folder)
        assert 0 < (part.verdict == "missing").sum() < 10
    return folder


def test_shards_in_one_folder_merge_to_the_whole(problems, folders):
    assert sorted(p.name for p in folders.iterdir()) == [f"shard-{k}-of-3" for k in (1, 2, 3)]
    whole = run(problems, "chunk:2")
    merged = merge([folders], folders)
    problems.assert_same_bits(merged, whole)
    stored = open_run(folders)
    problems.assert_same_bits(stored, whole)
    assert stored.attrs["status"] == "finished"
    for name in whole.variables:
        assert merged[name].attrs == whole[name].attrs
        assert merged[name].dims == whole[name].dims
    # The joined folder is that of the whole sweep.
    xarray.testing.assert_equal(run(problems, "chunk:2", out=folders), stored)
    problems.assert_same_bits(merge([folders], folders), whole)  # again


def test_shards_in_folders_of_their_own(problems, tmp_path):
    for k in (1, 2):
        run(problems, "map", shard=Shard(k, 2), out=tmp_path / f"machine-{k}")
    parts = [tmp_path / "machine-2" / "shard-2-of-2", tmp_path / "machine-1"]
    merged = merge(parts, tmp_path / "whole")
    problems.assert_same_bits(merged, run(problems, "map"))
    assert is_finished(tmp_path / "whole")


@pytest.fixture
def copied(folders, tmp_path):
    for k in (1, 2, 3):
        shutil.copytree(folders / f"shard-{k}-of-3", tmp_path / f"shard-{k}-of-3")
    return tmp_path


def test_a_missing_shard_is_named(copied):
    shutil.rmtree(copied / "shard-2-of-3")
    with pytest.raises(FolderError, match=r"missing shards: \['2/3'\]"):
        merge([copied], copied / "whole")
    assert not (copied / "whole").exists()


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_an_unfinished_shard_is_named(copied, status):
    write_json(copied / "shard-3-of-3" / PROGRESS, {"status": status})
    with pytest.raises(FolderError, match=r"unfinished: .*3/3 in .*shard-3-of-3"):
        merge([copied], copied / "whole")


def test_shards_of_different_sweeps_are_refused(copied):
    config = read_json(copied / "shard-2-of-3" / CONFIG)
    config["run"]["steps"] = 21
    write_json(copied / "shard-2-of-3" / CONFIG, config)
    with pytest.raises(FolderError, match=r"not shards of one sweep: steps: 20 / 21"):
        merge([copied], copied / "whole")


def test_shards_of_different_counts_are_refused(copied):
    config = read_json(copied / "shard-2-of-3" / CONFIG)
    config["run"]["shard"] = "2/4"
    write_json(copied / "shard-2-of-3" / CONFIG, config)
    with pytest.raises(FolderError, match="number of shards"):
        merge([copied], copied / "whole")


def test_a_folder_without_a_run_and_no_folders(tmp_path):
    with pytest.raises(FolderError, match="holds no run"):
        merge([tmp_path], tmp_path / "whole")
    with pytest.raises(FolderError, match="no shard's run"):
        merge([], tmp_path / "whole")


def test_a_refused_shard_leaves_no_folder_that_spoils_the_merge(problems, tmp_path):
    with pytest.raises(ValueError, match="too few"):
        run(problems, "map", shard="1/11", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_shard_returns_at_once(problems, folders, monkeypatch):
    monkeypatch.setattr(engine, "compile_chunks", None)
    again = run(problems, "chunk:2", shard="2/3", out=folders)
    assert again.attrs["status"] == FINISHED
