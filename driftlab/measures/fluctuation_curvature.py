"""The second fluctuation-dissipation relation: the loss's curvature under SGD's noise.

Source: Yaida (2019), "Fluctuation-dissipation relations for stochastic gradient descent".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from driftlab import curvature
from driftlab.dynamics import Snapshot
from driftlab.measures.blocking import Blocks, add_to_blocks, empty_blocks, last_half
from driftlab.measures.fluctuation_tracking import check_minimum, tracked_state
from driftlab.measures.hessian import FULL, objective_and_data, objective_hessian, vector_dtype
from driftlab.measures.recording import Tracker
from driftlab.objective import Params

_BLOCKS = 32


def second_relation(
    batch_size: int | None = None, minimum_records: int = 32, right_side: bool = True
) -> Tracker:
    """A measure of the second relation, averaged over the last half of its records.

    With the full-batch gradient `grad f` and Hessian H at theta, v the velocity before and v' after
    the step, at stationarity
    `(1 - nu) <|grad f|^2> - mu <v.grad f> = (eta / 2) <v'.H v'> + O(eta^2)`,
    exactly on a quadratic. The left side is called G(eta) here; as eta -> 0
    `2 G / eta -> (1 - nu)^2 / (1 - mu^2) Tr(H C)`, C the second moment of the batch's gradient: the
    velocity is a sum of gradients with that variance. See `hessian_magnitude`. The average over
    records needs batches drawn with replacement: within a shuffled epoch later batches
    anti-correlate with the velocity, and G then turns out too small, even negative. Records at the
    ends of epochs are special points as well.

    The optimiser must be wrapped by `track_fluctuation_dissipation` with learning rate and
    momentum, or be a schedule built on it; eta, mu and nu are read from its state.

    Args:
      batch_size: examples at once, to bound memory; None for all of them.
      minimum_records: fewer records than this give NaN.
      right_side: whether to compute the right side, a Hessian-vector product a record.

    Returns:
      A tracker of `second_relation_left`, `second_relation_right` (loss^2 / parameter^2), the
      standard error `..._error` of each by blocking, and `second_relation_records`, how many are
      averaged over. It raises a ValueError on a dynamics without objective or without that state.

    Raises:
      ValueError: if minimum_records is not a whole number, 16 or more.

    Cost: a gradient over all the training data a record, and about two more for the right side.
    """
    check_minimum("minimum_records", minimum_records, 16)
    names = ("left", "right") if right_side else ("left",)

    def init(params: Params) -> Blocks:
        return empty_blocks(len(names), _BLOCKS, vector_dtype(params))

    def update(snapshot: Snapshot, memory: Blocks) -> tuple[dict[str, Array], Blocks]:
        memory = add_to_blocks(memory, _sides(snapshot, batch_size, right_side))
        window = last_half(memory)
        ready = window.total >= minimum_records
        values = {}
        for index, name in enumerate(names):
            values[f"second_relation_{name}"] = window.mean[index]
            values[f"second_relation_{name}_error"] = window.error[index]
        values = {name: jnp.where(ready, value, jnp.nan) for name, value in values.items()}
        return values | {"second_relation_records": window.count}, memory

    return Tracker("second_relation", init, update)


def _sides(snapshot: Snapshot, batch_size: int | None, right_side: bool) -> Float[Array, " sides"]:
    """One record's values of the relation's sides."""
    state = tracked_state(snapshot.state.inner, "second_relation")
    if state.learning_rate is None or state.momentum is None:
        raise ValueError(
            "second_relation holds for SGD with momentum: give track_fluctuation_dissipation the "
            "learning_rate and momentum of its chain (momentum=0 for plain SGD)."
        )
    objective, examples = objective_and_data(snapshot, "second_relation", FULL)
    slope = curvature.mean_over_batches(
        lambda batch: jax.grad(lambda p: objective.value(p, batch)[0])(snapshot.params),
        examples,
        batch_size,
    )
    dtype = state.window.sums.dtype
    slope, gradient, moved = (
        optax.tree.cast(tree, dtype) for tree in (slope, snapshot.gradient, snapshot.updates)
    )
    velocity = optax.tree.scale(1 / state.learning_rate, moved)
    share = 1 - state.dampening
    # mu v = v' + (1 - nu) g, so that no part of the optimiser's state has to be known.
    momentum = optax.tree.vdot(velocity, slope) + share * optax.tree.vdot(gradient, slope)
    left = share * optax.tree.norm(slope, squared=True) - momentum
    if not right_side:
        return left[None]
    operator = objective_hessian(snapshot, "second_relation", batch_size)
    direction = jax.tree.map(lambda v, p: v.astype(p.dtype), velocity, snapshot.params)
    image = optax.tree.cast(operator.mv(direction), dtype)
    return jnp.stack([left, state.learning_rate / 2 * optax.tree.vdot(velocity, image)])


class HessianMagnitude(NamedTuple):
    """`G(eta) = trace eta / 2 + curvature eta^2`, fitted.

    Attributes:
      trace: of plain SGD `Tr(H C)`, in loss^3 / parameter^4; with momentum
        `(1 - nu)^2 / (1 - mu^2)` times that.
      trace_error: its standard error.
      curvature: of G, in loss^3 / parameter^4 / learning rate; 0 on a quadratic loss to leading
        order.
      curvature_error: its standard error.
      anharmonicity: `2 curvature / trace`: by which share G exceeds its line, per unit of rate.
      chi_squared: the sum of squared residuals over errors, with `rates - 2` degrees of freedom.
    """

    trace: Float[Array, ""]
    trace_error: Float[Array, ""]
    curvature: Float[Array, ""]
    curvature_error: Float[Array, ""]
    anharmonicity: Float[Array, ""]
    chi_squared: Float[Array, ""]


def hessian_magnitude(
    learning_rates: ArrayLike, values: ArrayLike, errors: ArrayLike
) -> HessianMagnitude:
    """The Hessian's magnitude and the loss's anharmonicity from G at several learning rates.

    A weighted least-squares fit of `G / eta = trace / 2 + curvature eta`. To first order in eta G
    is linear and its slope is half of Tr(H C) at the minimum (of plain SGD; with momentum divide
    the trace by `(1 - nu)^2 / (1 - mu^2)`); third and fourth derivatives bend it, and so does a C
    that depends on where the noise of that rate lets the weights be: the bend is evidence of
    anharmonicity, not a derivative of the loss. Use rates at which the first relation has
    equilibrated.

    Args:
      learning_rates: eta, `(rates,)`, positive and all different.
      values: G, the left sides of the second relation, `(rates,)`.
      errors: their standard errors, positive.

    Returns:
      The fit. With two rates it passes through both. Not finite where a value or error is not.

    Raises:
      ValueError: for fewer than two rates, shapes that differ, or known rates that are not positive
        or repeat, or known errors that are not positive.

    Source: Yaida (2019) (slope and curvature of G).
    """
    rates, heights, widths = (jnp.asarray(x, float) for x in (learning_rates, values, errors))
    if rates.ndim != 1 or rates.shape[0] < 2 or not rates.shape == heights.shape == widths.shape:
        raise ValueError(
            "hessian_magnitude needs G and its error at two or more learning rates; got shapes "
            f"{rates.shape}, {heights.shape} and {widths.shape}. One rate gives 2 G / eta only."
        )
    if not isinstance(rates, Tracer):
        known = np.asarray(rates)
        if not (known > 0).all() or len(np.unique(known)) < len(known):
            raise ValueError(f"learning_rates={known} must be positive and all different.")
    if not isinstance(widths, Tracer) and (np.asarray(widths) <= 0).any():
        raise ValueError(f"errors={np.asarray(widths)} must be positive: they weigh the fit.")
    weights = jnp.square(rates / widths)
    slopes = heights / rates
    total = weights.sum()
    centre = (weights * rates).sum() / total
    spread = (weights * jnp.square(rates - centre)).sum()
    bend = (weights * (rates - centre) * slopes).sum() / spread
    start = (weights * slopes).sum() / total - bend * centre
    residuals = jnp.square(slopes - start - bend * rates) * weights
    return HessianMagnitude(
        trace=2 * start,
        trace_error=2 * jnp.sqrt(1 / total + centre**2 / spread),
        curvature=bend,
        curvature_error=1 / jnp.sqrt(spread),
        anharmonicity=bend / start,
        chi_squared=residuals.sum(),
    )
