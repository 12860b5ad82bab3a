"""How an objective draws its batches: each a pure function of (key, step).

How batches are drawn is part of the mathematics of an optimiser (sampling with and without
replacement have different modified flows), so it is stated here and never left to a loader.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

__all__ = [
    "Sampling",
    "fixed_order",
    "full_batch",
    "permuted",
    "shuffled_epochs",
    "with_replacement",
]

# Eight rounds: Luby & Rackoff (1988) need four for a pseudo-random permutation with ideal round
# functions; the rounds here are a 32-bit mixer, so twice as many are used.
_ROUNDS = 8
# Few elements make a network of few states, which reaches only some of the permutations (at 3
# elements the rotations). Up to here the order is drawn uniformly, which costs a sort.
_EXACT_SIZE = 256


class Sampling(NamedTuple):
    """A rule that says which examples step `k` uses.

    Attributes:
      name: the rule's name, for records.
      batch_size: examples a step, or None when a step uses every example.
      indices: `indices(key, step, size)` gives the examples of step `step` out of `size`,
        an integer array of shape `(batch_size,)`, or None for all of them.
      steps_per_epoch: `steps_per_epoch(size)` gives the steps in one pass over the data.
    """

    name: str
    batch_size: int | None
    indices: Callable[[PRNGKeyArray, Int[Array, ""], int], Int[Array, " batch"] | None]
    steps_per_epoch: Callable[[int], int]


def full_batch() -> Sampling:
    """Every step uses every example: deterministic gradient descent."""
    return Sampling("full_batch", None, lambda key, step, size: None, lambda size: 1)


def with_replacement(batch_size: int) -> Sampling:
    """Each example of each batch is drawn independently and uniformly.

    Args:
      batch_size: examples a step; may exceed the data.

    Returns:
      The rule; an epoch is `size // batch_size` steps (at least one), by convention.

    Raises:
      ValueError: if `batch_size` is not a positive integer.
    """
    check_batch_size(batch_size)

    def indices(key: PRNGKeyArray, step: Int[Array, ""], size: int) -> Int[Array, " batch"]:
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, size, jnp.int32)

    return Sampling(
        "with_replacement", batch_size, indices, lambda size: max(1, size // batch_size)
    )


def shuffled_epochs(batch_size: int) -> Sampling:
    """Each epoch visits the examples in a new random order, without replacement.

    An epoch has `size // batch_size` steps; the `size % batch_size` examples at the end of its
    order are left out (other ones each epoch). The order is a keyed permutation evaluated only
    at the batch's positions (`permuted`), so that step `k` costs the same at any `k` and no
    order is stored.

    Args:
      batch_size: examples a step.

    Returns:
      The rule.

    Raises:
      ValueError: if `batch_size` is not a positive integer, or exceeds the data (when used).
    """
    check_batch_size(batch_size)
    steps_per_epoch = _epoch(batch_size)

    def indices(key: PRNGKeyArray, step: Int[Array, ""], size: int) -> Int[Array, " batch"]:
        per_epoch = steps_per_epoch(size)
        epoch_key = jax.random.fold_in(key, step // per_epoch)
        positions = (step % per_epoch) * batch_size + jnp.arange(batch_size)
        return permuted(epoch_key, positions, size)

    return Sampling("shuffled_epochs", batch_size, indices, steps_per_epoch)


def fixed_order(batch_size: int) -> Sampling:
    """The same `size // batch_size` batches in the same order every epoch, as the data lie.

    The setting of backward error analysis for a given batch order (Smith et al. 2021). The last
    `size % batch_size` examples are never used.

    Args:
      batch_size: examples a step.

    Returns:
      The rule; it ignores the key.

    Raises:
      ValueError: if `batch_size` is not a positive integer, or exceeds the data (when used).
    """
    check_batch_size(batch_size)
    steps_per_epoch = _epoch(batch_size)

    def indices(key: PRNGKeyArray, step: Int[Array, ""], size: int) -> Int[Array, " batch"]:
        del key
        return (step % steps_per_epoch(size)) * batch_size + jnp.arange(batch_size)

    return Sampling("fixed_order", batch_size, indices, steps_per_epoch)


def permuted(key: PRNGKeyArray, positions: Int[Array, " batch"], size: int) -> Int[Array, " batch"]:
    """The values at `positions` of a random permutation of `0 .. size-1`.

    Up to 256 elements every permutation is equally likely. Beyond, it is pseudo-random: a Feistel
    network on Z_a x Z_b with a*b >= size, whose rounds `left += F(right) mod a` and `right +=
    F(left) mod b` are bijections, followed by cycle walking (values >= size are permuted again
    until they fall below it), which is again a bijection of `0 .. size-1`. Source: Black & Rogaway
    (2002), sections 3.2 and 4.

    Args:
      key: which permutation.
      positions: where to evaluate it, each in `[0, size)`; shape `(batch,)`.
      size: the number of elements, below 2**31.

    Returns:
      The permutation's values at the positions; shape `(batch,)`, int32.
    """
    if size <= _EXACT_SIZE:
        return jax.random.permutation(key, size)[positions].astype(jnp.int32)
    rows = max(1, int(size**0.5))
    columns = -(-size // rows)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def network(value: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
        left, right = value // columns, value % columns
        for index in range(0, _ROUNDS, 2):
            left = (left + _mix(right ^ round_keys[index]) % rows) % rows
            right = (right + _mix(left ^ round_keys[index + 1]) % columns) % columns
        return left * jnp.uint32(columns) + right

    value = network(positions.astype(jnp.uint32))
    value = jax.lax.while_loop(
        lambda value: jnp.any(value >= size),
        lambda value: jnp.where(value >= size, network(value), value),
        value,
    )
    return value.astype(jnp.int32)


def _mix(value: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """A 32-bit finaliser (xor-shifts and odd multiplications: MurmurHash3's, Appleby 2011)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)


def check_batch_size(batch_size: int) -> None:
    """Refuses what is not a positive integer.

    Args:
      batch_size: examples a batch.

    Raises:
      ValueError: saying what was given.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer; got {batch_size!r}.")


def _epoch(batch_size: int) -> Callable[[int], int]:
    def steps_per_epoch(size: int) -> int:
        if batch_size > size:
            raise ValueError(
                f"batch_size is {batch_size}, but the objective's data hold only {size} examples; "
                "use a smaller batch_size, or full_batch()."
            )
        return size // batch_size

    return steps_per_epoch
