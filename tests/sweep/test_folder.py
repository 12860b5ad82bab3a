import json
import os
import subprocess
import sys
import textwrap

import pytest

from driftlab.sweep import FolderError
from driftlab.sweep.folder import CONFIG, LOCK, differences, opened, read_json, write_json

IDENTITY = {"grid": {"lanes": {"learning_rate": [0.1, 0.2]}}, "steps": 10}


def test_json_round_trip_leaves_no_partial_file(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_new_folder_gets_config_and_environment(tmp_path):
    with opened(tmp_path / "a" / "b", IDENTITY) as folder:
        config = read_json(folder / CONFIG)
    assert config["run"] == IDENTITY
    assert set(config["environment"]) == {"versions", "devices", "command", "git", "platform"}
    assert "jax" in config["environment"]["versions"]


def test_the_same_identity_reopens_another_is_refused_by_field(tmp_path):
    with opened(tmp_path, IDENTITY):
        pass
    with opened(tmp_path, {**IDENTITY, "steps": 10}):
        pass
    other = {"grid": {"lanes": {"learning_rate": [0.1, 0.3]}}, "steps": 10, "seed": 1}
    with pytest.raises(FolderError, match="another config") as caught, opened(tmp_path, other):
        pass
    assert "grid.lanes.learning_rate: [0.1, 0.2] / [0.1, 0.3]" in str(caught.value)
    assert 'seed: "(unset)" / 1' in str(caught.value)
    assert "steps" not in str(caught.value)


def test_a_foreign_folder_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(FolderError, match=r"not empty and holds no run.*thesis"),
        opened(tmp_path, IDENTITY),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(FolderError, match="cannot write in the output folder"),
            opened(folder, IDENTITY),
        ):
            pass


@pytest.mark.parametrize(
    "content",
    [b"", b'{"run": {"st', b"\xff\xfe\x00", b"[]", b"{}", b'{"run": 3}'],
    ids=["empty", "truncated", "binary", "list", "no run", "not a mapping"],
)
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(FolderError, match=r"config\.json"), opened(tmp_path, IDENTITY):
        pass
    assert (tmp_path / CONFIG).read_bytes() == content


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    script = f"""
        import pathlib, sys
        from driftlab.sweep.folder import opened
        with opened(pathlib.Path({str(tmp_path)!r}), {IDENTITY!r}):
            print("open", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(FolderError, match="another process is writing"),
            opened(tmp_path, IDENTITY),
        ):
            pass
        process.kill()
    with opened(tmp_path, IDENTITY):  # the lock died with the process
        assert (tmp_path / LOCK).exists()


def test_differences_are_nested_and_short():
    found = differences({"a": {"b": 1, "c": 2}, "d": "x" * 200}, {"a": {"b": 1, "c": 3}})
    assert found[0] == "a.c: 2 / 3"
    assert found[1].startswith('d: "xxx')
    assert found[1].endswith('(202 characters) / "(unset)"')
    assert differences(json.loads(json.dumps(IDENTITY)), IDENTITY) == []
