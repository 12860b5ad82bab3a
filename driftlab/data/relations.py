"""Directed relations between named things: edge lists, their closure, their file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from driftlab.data.dataset import DataError
from driftlab.data.files import read_bytes


class Relations(NamedTuple):
    """Pairs of things, such as a word and a more general one.

    Attributes:
      names: of the things, each once.
      pairs: indices into names, `(pairs, 2)`: the specific thing, then the general one (child and
        ancestor); each pair once, none with itself.
    """

    names: tuple[str, ...]
    pairs: Int[np.ndarray, "pairs 2"]


def load_relations(path: str | os.PathLike[str]) -> Relations:
    """Reads an edge list: one `specific<TAB>general` a line; further columns are ignored.

    Empty lines and lines that begin with `#` are skipped, repeated pairs count once. Things are
    numbered as they first appear. Compressed files (gzip) are read as they are.

    Args:
      path: the file.

    Returns:
      The relations.

    Raises:
      FileNotFoundError: if there is no such file.
      DataError: naming the line: without a tab, with an empty name, a thing related to itself; for
        a file without a pair, or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such edge list (specific<TAB>general lines).")
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}).") from None
    numbers: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    # Not splitlines, which also cuts at characters that an editor does not count as ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise DataError(
                f"{path}, line {number}: {line!r} is not `specific<TAB>general`, two names with a "
                "tab between them."
            )
        if fields[0] == fields[1]:
            raise DataError(
                f"{path}, line {number}: {fields[0]!r} is related to itself; remove such lines."
            )
        first, second = (numbers.setdefault(field, len(numbers)) for field in fields[:2])
        pairs[first, second] = None
    if not pairs:
        raise DataError(f"{path}: holds no pair.")
    return Relations(tuple(numbers), np.array(list(pairs), np.int32))


def transitive_closure(relations: Relations) -> Relations:
    """All pairs of a thing and what can be reached from it along the relations.

    Args:
      relations: of specific to general, without a cycle.

    Returns:
      The closure, ordered by child and then by ancestor; names as they were.

    Raises:
      DataError: if the relations run in a cycle, naming a thing on it.
    """
    above: list[list[int]] = [[] for _ in relations.names]
    for child, parent in relations.pairs.tolist():
        above[child].append(parent)
    closed: dict[int, frozenset[int]] = {}
    for start in range(len(above)):
        stack, open_ = [start], set()
        while stack:
            node = stack[-1]
            if node in closed:
                stack.pop()
                continue
            waiting = [parent for parent in above[node] if parent not in closed]
            if waiting:
                open_.add(node)
                cycle = [parent for parent in waiting if parent in open_]
                if cycle:
                    raise DataError(
                        f"the relations run in a cycle through {relations.names[cycle[0]]!r}: "
                        "nothing can be more general than itself."
                    )
                stack += waiting
                continue
            closed[node] = frozenset(above[node]).union(*(closed[p] for p in above[node]))
            open_.discard(node)
            stack.pop()
    pairs = [(child, parent) for child in range(len(above)) for parent in sorted(closed[child])]
    return Relations(relations.names, np.array(pairs, np.int32).reshape(-1, 2))


def restricted(relations: Relations, keep: Bool[np.ndarray, " pairs"]) -> Relations:
    """Some of the pairs, with only the things that they relate.

    Args:
      relations: to choose from.
      keep: which pairs.

    Returns:
      Relations whose things keep their order.
    """
    pairs = relations.pairs[keep]
    used, renumbered = np.unique(pairs, return_inverse=True)
    names = tuple(relations.names[i] for i in used)
    return Relations(names, renumbered.reshape(-1, 2).astype(np.int32))


def hold_out(relations: Relations, share: float, seed: int = 0) -> tuple[Relations, Relations]:
    """Splits off pairs to be predicted, of which neither end is a leaf or a root.

    Becigneul and Ganea's rule: a leaf is nobody's ancestor, a root has none, and what remains of a
    pair with one of them would say nothing about it.

    Args:
      relations: a closure.
      share: of all pairs, from 0 up to what the rule leaves.
      seed: of the draw.

    Returns:
      `(train, held_out)`, both with all the names.

    Raises:
      ValueError: if share is not in [0, 1), or more pairs than there are candidates.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share} must be at least 0 and less than 1.")
    child, parent = relations.pairs.T
    inner = np.isin(child, parent) & np.isin(parent, child)
    candidates, count = np.flatnonzero(inner), round(share * len(relations.pairs))
    if count > len(candidates):
        raise ValueError(
            f"share={share} of {len(relations.pairs)} pairs is {count}; only {len(candidates)} "
            "touch no leaf and no root."
        )
    chosen = np.zeros(len(relations.pairs), bool)
    chosen[np.random.default_rng(seed).choice(candidates, count, replace=False)] = True
    return (
        relations._replace(pairs=relations.pairs[~chosen]),
        relations._replace(pairs=relations.pairs[chosen]),
    )


def ancestors_table(
    relations: Relations,
) -> tuple[Int[np.ndarray, " things"], Int[np.ndarray, "things most"]]:
    """The ancestors of every thing, as an array.

    Args:
      relations: pairs of thing and ancestor.

    Returns:
      `(counts, table)`: how many ancestors a thing has; and which, padded with the thing itself.
    """
    count = len(relations.names)
    counts = np.bincount(relations.pairs[:, 0], minlength=count)
    width = int(counts.max(initial=1))
    table = np.repeat(np.arange(count, dtype=np.int32)[:, None], width, axis=1)
    order = np.argsort(relations.pairs[:, 0], kind="stable")
    children, parents = relations.pairs[order].T
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table[children, np.arange(len(children)) - starts[children]] = parents
    return counts, table


def write_embedding(path: str | os.PathLike[str], names: Sequence[str], points: np.ndarray) -> None:
    """Writes `name<TAB>coordinate<TAB>...` lines, which the usual viewers of embeddings read.

    Args:
      path: the file; written to a temporary name and renamed.
      names: of the things.
      points: `(things, dimension)`.

    Raises:
      ValueError: if the two differ in number.
    """
    if len(names) != len(points):
        raise ValueError(f"{len(names)} names for {len(points)} points.")
    path = Path(path)
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        for name, point in zip(names, np.asarray(points), strict=True):
            file.write("\t".join([name, *(repr(float(x)) for x in point)]) + "\n")
    temporary.replace(path)
