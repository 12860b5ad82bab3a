"""Deterministic splits and subsets that keep the classes balanced.

All randomness comes from `numpy.random.RandomState`: NumPy promises that its stream never changes,
which it does not promise of `Generator`, and a split that moves between versions would mix
training and test examples of runs that are compared.
"""

import numpy as np
from jaxtyping import Int, Num


def stratified_split(
    labels: Num[np.ndarray, " n"], test_size: int, seed: int = 0
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Splits examples so that both parts hold the classes in the same proportions.

    Class k with n_k of n examples gives `test_size * n_k / n` of them to the test part, rounded so
    that the total is exact (the largest remainders are rounded up).

    Args:
        labels: class numbers.
        test_size: examples in the test part.
        seed: seed of the shuffle.

    Returns:
        Indices of the training and of the test part, each in shuffled order.
    """
    random = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    share = test_size * counts / counts.sum()
    quota = np.floor(share).astype(int)
    largest_remainders = np.argsort(quota - share, kind="stable")
    quota[largest_remainders[: test_size - quota.sum()]] += 1
    shuffled = random.permutation(len(labels))
    in_test = np.zeros(len(labels), dtype=bool)
    for label, wanted in zip(classes, quota, strict=True):
        members = shuffled[labels[shuffled] == label]
        in_test[members[:wanted]] = True
    # Shuffled once more: in the first order the quotas fill at the beginning, so the training part
    # would begin with the classes whose quota filled first.
    return random.permutation(np.flatnonzero(~in_test)), random.permutation(np.flatnonzero(in_test))


def balanced_subset(
    labels: Num[np.ndarray, " n"], size: int, seed: tuple[int, ...]
) -> Int[np.ndarray, " size"]:
    """Chooses examples so that the class counts differ by at most one where that is possible.

    A class with too few examples gives all it has and the others make up for it. For one seed the
    choices are nested: the subset of size m holds that of size k for every k < m.

    Args:
        labels: class numbers or signs.
        size: examples to choose, at most the number of labels.
        seed: non-negative integers.

    Returns:
        Indices of the chosen examples, in shuffled order.
    """
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    # Rank of each example inside its class. Sorted by rank, the classes take turns until they are
    # empty, so every prefix of the order is as balanced as it can be.
    rank = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    chosen = np.lexsort((labels, rank))[:size]
    return random.permutation(chosen)
