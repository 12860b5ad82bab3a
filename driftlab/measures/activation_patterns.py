"""How far hidden units move from initialisation: their weights, and when they are active.

In the lazy regime of wide networks both go to 0 like `1 / sqrt(width)`; where features are learned
they do not. Each compares `snapshot.params` with `snapshot.initial_params`, which `sweep` fills in.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.objective import Params


def changed_patterns(
    preactivations: Callable[[Params, Array], PyTree[Array]],
    inputs: Float[Array, "n *features"],
) -> Measure:
    """The share of (example, unit) pairs whose activation differs from that at initialisation.

    `sum_ir 1{1{w_r(0) . x_i >= 0} != 1{w_r(k) . x_i >= 0}} / (n m)`. A unit counts as active at
    exactly 0.

    Args:
      preactivations: `preactivations(params, inputs) -> (n, ...)`, what the rectifiers are given;
        or a pytree of such arrays, one a layer, over all of whose entries the share is taken.
      inputs: the examples.

    Returns:
      A measure of `changed_patterns`, from 0 to 1; NaN where a preactivation is not finite.

    Raises:
      ValueError: from the measure, without initial params or without preactivations.

    Source: Du, Zhai, Poczos and Singh (2019), section 5. Cost: two forward passes a record.
    """
    inputs = jnp.asarray(inputs)

    def changed_patterns(snapshot: Snapshot) -> Float[Array, ""]:
        initial = _initial(snapshot, "changed_patterns")
        before = jax.tree.leaves(preactivations(initial, inputs))
        after = jax.tree.leaves(preactivations(snapshot.params, inputs))
        total = sum(leaf.size for leaf in before)
        if not total:
            raise ValueError("changed_patterns: preactivations(params, inputs) holds no entry.")
        dtype = jnp.result_type(float, *after)
        # Means of each, weighted: a float32 sum over a large layer would lose its last digits.
        share = sum(
            jnp.mean((old >= 0) != (new >= 0), dtype=dtype) * (old.size / total)
            for old, new in zip(before, after, strict=True)
        )
        finite = jnp.stack([jnp.isfinite(new).all() for new in after]).all()
        return jnp.where(finite, share, jnp.nan)

    return changed_patterns


def unit_distances(
    weights: Callable[[Params], Float[Array, "d m"]], *, per_unit: bool = False
) -> Measure:
    """How far the hidden units' weights are from initialisation, `|w_r(k) - w_r(0)|`.

    The theory of lazy training bounds the largest of them, by `curvature.movement_bound`.

    Args:
      weights: `weights(params) -> (d, m)`, the units as columns: `lambda p: p["kernel"]` for
        `models.TwoLayerReLU`.
      per_unit: whether every unit's distance is recorded too.

    Returns:
      A measure of `unit_distance_max` and `unit_distance_mean`; with per_unit `unit_distance`,
      `(m,)`. In parameter units.

    Raises:
      ValueError: from the measure, without initial params, or if the weights are not a matrix.

    Source: Du, Zhai, Poczos and Singh (2019), section 5. Cost: O(number of weights) a record.
    """

    def unit_distances(snapshot: Snapshot) -> dict[str, Array]:
        moved = weights(snapshot.params) - weights(_initial(snapshot, "unit_distances"))
        if moved.ndim != 2 or not moved.size:
            raise ValueError(
                f"unit_distances: weights(params) must be (d, m), one column a unit; got shape "
                f"{moved.shape}."
            )
        distances = jnp.linalg.norm(moved, axis=0)
        values = {
            "unit_distance_max": distances.max(),
            "unit_distance_mean": distances.mean(),
        }
        return values | ({"unit_distance": distances} if per_unit else {})

    return unit_distances


def _initial(snapshot: Snapshot, name: str) -> Params:
    """theta_0."""
    if snapshot.initial_params is None:
        raise ValueError(
            f"{name} needs snapshot.initial_params; sweep fills it in, elsewhere use "
            "snapshot._replace(initial_params=...)."
        )
    return snapshot.initial_params
