"""Edge lists, their closure, what is held out, and the file of an embedding."""

import gzip

import numpy as np
import pytest

from driftlab.data import relations as data
from driftlab.data.dataset import DataError


def named(found):
    return {(found.names[c], found.names[p]) for c, p in found.pairs.tolist()}


def brute_force_closure(pairs):
    closed = set(pairs)
    while True:
        longer = {(a, d) for a, b in closed for c, d in closed if b == c} - closed
        if not longer:
            return closed
        closed |= longer


@pytest.fixture
def diamond(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text("# a comment\na\tb\na\tc\n\nb\td\tweight\nc\td\nd\te\na\tb\n")
    return path


def test_an_edge_list_is_read(diamond, tmp_path):
    found = data.load_relations(diamond)
    assert found.names == ("a", "b", "c", "d", "e")
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 3], [2, 3], [3, 4]]
    packed = tmp_path / "edges.tsv.gz"
    packed.write_bytes(gzip.compress(diamond.read_bytes()))
    np.testing.assert_array_equal(data.load_relations(packed).pairs, found.pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\na b\n", r"line 2: 'a b' is not `specific<TAB>general`"),
        ("a\tb\n\t b\n", r"line 2: .* is not"),
        ("a\tb\n# c\nc\tc\n", r"line 3: 'c' is related to itself"),
        ("# nothing\n", "holds no pair"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, text, message):
    path = tmp_path / "edges.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        data.load_relations(path)


def test_lines_are_those_of_an_editor(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_bytes("\ufeffa\x85x\tb\r\nb\tc\r\n".encode())
    assert data.load_relations(path).names == ("a\x85x", "b", "c")
    path.write_bytes("a\x85x\tb\r\nb c\r\n".encode())
    with pytest.raises(DataError, match="line 2: 'b c' is not"):
        data.load_relations(path)


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        data.load_relations(path)
    with pytest.raises(FileNotFoundError, match="no such edge list"):
        data.load_relations(tmp_path / "other.tsv")


def test_the_closure_equals_a_brute_force_one(diamond):
    assert named(data.transitive_closure(data.load_relations(diamond))) == brute_force_closure(
        named(data.load_relations(diamond))
    )
    random = np.random.default_rng(0)
    child = random.integers(1, 30, 60)
    parent = (child * random.random(60)).astype(int)  # smaller: no cycle
    names = tuple(map(str, range(30)))
    graph = data.Relations(names, np.unique(np.stack([child, parent], 1), axis=0))
    assert named(data.transitive_closure(graph)) == brute_force_closure(named(graph))


def test_a_cycle_is_named():
    graph = data.Relations(("a", "b", "c", "d"), np.array([[0, 1], [1, 2], [2, 3], [3, 1]]))
    with pytest.raises(DataError, match=r"cycle through '[bcd]'"):
        data.transitive_closure(graph)


def test_restricted_keeps_only_what_is_related(diamond):
    found = data.load_relations(diamond)
    part = data.restricted(found, found.pairs[:, 1] == 3)
    assert part.names == ("b", "c", "d")
    assert named(part) == {("b", "d"), ("c", "d")}


def test_the_table_of_ancestors(diamond):
    found = data.transitive_closure(data.load_relations(diamond))
    counts, table = data.ancestors_table(found)
    assert counts.tolist() == [4, 2, 2, 1, 0]
    assert table.tolist() == [[1, 2, 3, 4], [3, 4, 1, 1], [3, 4, 2, 2], [4, 3, 3, 3], [4] * 4]


def test_pairs_that_are_held_out_touch_no_leaf_and_no_root(diamond):
    found = data.transitive_closure(data.load_relations(diamond))
    # a is a leaf, e the root: b-d and c-d remain.
    train, out = data.hold_out(found, 2 / len(found.pairs))
    assert named(out) == {("b", "d"), ("c", "d")}
    assert named(train) | named(out) == named(found)
    assert len(train.pairs) + len(out.pairs) == len(found.pairs)
    assert data.hold_out(found, 0.0)[1].pairs.shape == (0, 2)
    with pytest.raises(ValueError, match="only 2 touch no leaf and no root"):
        data.hold_out(found, 0.5)
    with pytest.raises(ValueError, match=r"share=1\.0 must be"):
        data.hold_out(found, 1.0)


def test_an_embedding_is_written_whole(tmp_path):
    path = tmp_path / "points.tsv"
    points = np.array([[0.1, -1 / 3], [1e-20, 2.0]])
    data.write_embedding(path, ["a b", "c"], points)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert [line[0] for line in lines] == ["a b", "c"]
    np.testing.assert_array_equal(np.array([line[1:] for line in lines], float), points)
    assert [entry.name for entry in tmp_path.iterdir()] == ["points.tsv"]
    with pytest.raises(ValueError, match="1 names for 2 points"):
        data.write_embedding(path, ["a"], points)
