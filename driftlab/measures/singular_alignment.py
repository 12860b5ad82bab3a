"""How the layers of a linear network turn into rank one, line up, and point at the max margin."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.dynamics import Snapshot
from driftlab.measures.layer_matrices import Matrices, network_matrices
from driftlab.measures.layerwise import leaf_paths
from driftlab.measures.leading_singular import (
    SingularTriple,
    initial_singular_block,
    leading_singular,
)
from driftlab.measures.recording import Measure, Tracker
from driftlab.objective import Params


class AlignmentBounds(NamedTuple):
    """What a start promises of all later layers along gradient flow.

    Attributes:
      excess: D, the bound of `|W_k|_F^2 - |W_k|_2^2` for all k and t.
      misalignment: `D + |W_{k+1}(0)|_2^2 + |W_k(0)|_2^2` for k = 1 .. L-1, the bound of
        `(1 - <v_{k+1}, u_k>^2) |W_{k+1}|_2^2`.
    """

    excess: Float[Array, ""]
    misalignment: Float[Array, " pairs"]


def alignment_bounds(params: Params, transposed: bool | None = None) -> AlignmentBounds:
    """The constants of Ji & Telgarsky's lemma 2, from where gradient flow starts.

    `D = max_k |W_k|_F^2 - |W_L|_F^2 + sum_k |W_k W_k^T - W_{k+1}^T W_{k+1}|_2`. Both bounds are
    conserved quantities' doing: they hold at all times of gradient flow with any loss, and nearly
    for small learning rates.

    Args:
      params: at time 0, read by `network_matrices`; the last layer has one output.
      transposed: as there.

    Returns:
      The bounds, parameter^2 units.

    Raises:
      ValueError: if the network has more than one output; as `network_matrices`.

    Source: Ji & Telgarsky (2019), lemma 2.
    """
    matrices = list(_single_output(network_matrices(params, transposed)).values())
    norms = jnp.stack([jnp.sum(matrix**2) for matrix in matrices])
    tops = jnp.stack([_top(matrix) for matrix in matrices]) ** 2
    # The difference is symmetric: its largest singular value is its spectral norm.
    apart = [
        _top(lower @ lower.T - upper.T @ upper) for lower, upper in itertools.pairwise(matrices)
    ]
    excess = norms.max() - norms[-1] + sum(apart, start=jnp.zeros((), norms.dtype))
    return AlignmentBounds(excess, excess + tops[1:] + tops[:-1])


def layer_alignment(
    max_margin_direction: ArrayLike | None = None,
    *,
    transposed: bool | None = None,
    tolerance: float | None = None,
) -> Tracker:
    """A measure of the implicit bias of a deep linear network: rank one, aligned, max margin.

    With `sigma_k, u_k, v_k` the leading singular value and vectors of W_k, and `w = W_L ... W_1`,
    gradient flow on separable data with the exponential or logistic loss has all of

        sigma_k / |W_k|_F -> 1,   |<v_{k+1}, u_k>| -> 1,   |<w / prod_k |W_k|_F, v_1>| -> 1,
        <w / |w|, max_margin_direction> -> 1,

    slowly: the excess `|W_k|_F^2 - sigma_k^2` is bounded and the norms grow like a root of
    `log(1 / risk)`. What holds from the start on is `alignment_bounds`.

    Args:
      max_margin_direction: of the data, `(inputs,)`, such as that of `driftlab.data.separation`;
        None leaves `direction_cosine` out.
      transposed: as in `network_matrices`.
      tolerance: of `leading_singular`.

    Returns:
      A tracker that follows the singular vectors of large layers from record to record, of

      - `spectral_ratio_<layer>`, `sigma_k / |W_k|_F`, at least `1 / sqrt(rank)`; 1 always for a
        layer with one output or input, which says nothing;
      - `rank_one_defect_<layer>`, `|W_k / |W_k|_F - u_k v_k^T|_F`;
      - `alignment_<layer>_<next>`, `|<v_{k+1}, u_k>|`;
      - `predictor_alignment`, `|<w / prod_k |W_k|_F, v_1>|`, and `direction_cosine`;
      - `alignment_excess`, `max_k |W_k|_F^2 - sigma_k^2`, and `alignment_excess_bound`, D;
      - `alignment_slack`, the least of `<v_{k+1}, u_k>^2 - 1 + bound / sigma_{k+1}^2` (infinite for
        one layer): the lemma says it is never negative.

      NaN where a layer is 0 (such as the first one at the start) or not finite. It raises a
      ValueError for a network with more than one output, for a direction of another length than
      the inputs', and as `network_matrices`.

    Source: Ji & Telgarsky (2019), "Gradient descent aligns the layers of deep linear networks",
    theorems 1 and 2, lemma 2. Cost: `leading_singular` of each layer.
    """
    direction = None if max_margin_direction is None else _direction(max_margin_direction)

    def init(params: Params) -> tuple[dict[str, Array], AlignmentBounds]:
        matrices = _single_output(network_matrices(params, transposed))
        return _blocks(matrices), alignment_bounds(params, transposed)

    def update(
        snapshot: Snapshot, memory: tuple[dict[str, Array], AlignmentBounds]
    ) -> tuple[dict[str, Array], PyTree[Array]]:
        blocks, bounds = memory
        matrices = _single_output(network_matrices(snapshot.params, transposed))
        triples, blocks = _triples(matrices, blocks, tolerance)
        values = _ratios(matrices, triples)
        names = list(triples)
        slack = jnp.full((), jnp.inf, bounds.excess.dtype)
        for place, (lower, upper) in enumerate(itertools.pairwise(names)):
            cosine = abs(jnp.vdot(triples[upper].right, triples[lower].left))
            values[f"alignment_{lower}_{upper}"] = cosine
            allowed = bounds.misalignment[place] / triples[upper].value ** 2
            slack = jnp.minimum(slack, cosine**2 - 1 + allowed)
        predictor = _normalized_product(matrices)
        values["predictor_alignment"] = abs(jnp.vdot(predictor, triples[names[0]].right))
        if direction is not None:
            values["direction_cosine"] = _cosine(predictor, direction)
        excess = jnp.stack(
            [_squared_rest(matrices[name], triple) for name, triple in triples.items()]
        )
        values |= {
            "alignment_excess": excess.max(),
            "alignment_excess_bound": bounds.excess,
            "alignment_slack": slack,
        }
        return values, (blocks, bounds)

    return Tracker("layer_alignment", init, update)


def spectral_ratio(tolerance: float | None = None) -> Tracker:
    """A measure of how close to rank one the dense layers of any network are, `|W|_2 / |W|_F`.

    Between `1 / sqrt(rank)` and 1: the inverse square root of `stable_rank`, by a tracked singular
    vector instead of all singular values, so that layers of thousands of units cost little.

    Args:
      tolerance: of `leading_singular`.

    Returns:
      A tracker of `spectral_ratio_<layer>` and `rank_one_defect_<layer>`, `|W / |W|_F - u v^T|_F`,
      for every parameter with two axes, named by its path without "kernel". It raises a ValueError
      on params without one.

    Source: Ji & Telgarsky (2019), figure 2.
    """

    def init(params: Params) -> dict[str, Array]:
        return _blocks(_dense(params))

    def update(
        snapshot: Snapshot, blocks: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        matrices = _dense(snapshot.params)
        triples, blocks = _triples(matrices, blocks, tolerance)
        return _ratios(matrices, triples), blocks

    return Tracker("spectral_ratio", init, update)


def normalized_margin(max_margin: float | None = None, transposed: bool | None = None) -> Measure:
    """A measure of the margin of a linear network's predictor, `min_i y_i <w, x_i> / |w|`.

    Args:
      max_margin: gamma, the largest there is (`driftlab.data.separation`), for `margin_ratio`.
      transposed: as in `network_matrices`.

    Returns:
      A measure of `normalized_margin`, over all training examples, which are pairs of inputs and
      signs; in units of the inputs, negative while an example is on the wrong side. With
      max_margin also of `margin_ratio`, the margin over gamma, at most 1.
    """

    def normalized_margin(snapshot: Snapshot) -> dict[str, Array]:
        if snapshot.objective is None:
            raise ValueError("normalized_margin needs an objective with examples and signs.")
        inputs, signs = (jnp.asarray(part) for part in snapshot.objective.data)
        predictor = _normalized_product(
            _single_output(network_matrices(snapshot.params, transposed))
        )
        outputs = inputs.reshape(len(inputs), -1) @ predictor / jnp.linalg.norm(predictor)
        margin = jnp.min(signs.reshape(-1) * outputs)
        values = {"normalized_margin": margin}
        return values if max_margin is None else values | {"margin_ratio": margin / max_margin}

    return normalized_margin


def _single_output(matrices: Matrices) -> Matrices:
    name, last = list(matrices.items())[-1]
    if last.shape[0] != 1:
        raise ValueError(
            f"the last layer, {name!r}, has {last.shape[0]} outputs: the theory of alignment is of "
            "networks with one. spectral_ratio measures any."
        )
    return matrices


def _dense(params: Params) -> Matrices:
    found = {
        "_".join(path[:-1] if path[-1] == "kernel" and len(path) > 1 else path): leaf
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        if jnp.ndim(leaf) == 2
    }
    if not found:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        raise ValueError(
            f"spectral_ratio needs a parameter with two axes; params have shapes {shapes}."
        )
    return found


def _blocks(matrices: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: initial_singular_block(matrix.shape, matrix.dtype)
        for name, matrix in matrices.items()
    }


def _triples(
    matrices: Matrices, blocks: dict[str, Array], tolerance: float | None
) -> tuple[dict[str, SingularTriple], dict[str, Array]]:
    triples, following = {}, {}
    for name, matrix in matrices.items():
        triples[name], following[name] = leading_singular(matrix, blocks[name], tolerance)
    return triples, following


def _ratios(matrices: Matrices, triples: dict[str, SingularTriple]) -> dict[str, Array]:
    values = {}
    for name, triple in triples.items():
        whole = jnp.linalg.norm(matrices[name])
        ratio = triple.value / whole
        # 1 - ratio without cancellation, of which the defect is the root of two parts.
        rest = _squared_rest(matrices[name], triple) / whole**2
        values[f"spectral_ratio_{name}"] = ratio
        values[f"rank_one_defect_{name}"] = jnp.sqrt(rest + (rest / (1 + ratio)) ** 2)
    return values


def _squared_rest(matrix: Array, triple: SingularTriple) -> Float[Array, ""]:
    """`|W|_F^2 - sigma^2` as the sum of squares that it is."""
    return jnp.sum((matrix - triple.value * jnp.outer(triple.left, triple.right)) ** 2)


def _normalized_product(matrices: Matrices) -> Float[Array, " inputs"]:
    """`W_L ... W_1 / prod_k |W_k|_F`, from the single output down."""
    row, *others = [matrix / jnp.linalg.norm(matrix) for matrix in reversed(matrices.values())]
    for matrix in others:
        row = row @ matrix
    return row[0]


def _top(matrix: Array) -> Float[Array, ""]:
    triple, _ = leading_singular(matrix, initial_singular_block(matrix.shape, matrix.dtype))
    return jnp.where((matrix == 0).all(), 0, triple.value)


def _direction(values: Any) -> Float[np.ndarray, " inputs"]:
    direction = np.asarray(values, float).reshape(-1)
    size = float(np.linalg.norm(direction))
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"max_margin_direction must be finite and not 0; its norm is {size}. "
            "driftlab.data.separation finds it, for separable data."
        )
    return direction / size


def _cosine(predictor: Array, direction: np.ndarray) -> Float[Array, ""]:
    if predictor.shape != direction.shape:
        raise ValueError(
            f"max_margin_direction has {direction.size} entries; the network takes "
            f"{predictor.size} inputs."
        )
    unit = predictor / jnp.linalg.norm(predictor)
    return jnp.vdot(unit, jnp.asarray(direction, predictor.dtype))
