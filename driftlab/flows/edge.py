"""Edge flow: gradient descent at the edge of stability as centre, direction and amplitude.

The field is in the papers' time: at learning rate h, iteration n is time `t = n h`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.rod import check_floor, check_learning_rate, floor_of, split
from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.objective import Objective, Params


class Edge(NamedTuple):
    """The state of edge flow: iteration n is near `centre + (-1)^n amplitude direction`.

    Attributes:
      centre: c.
      direction: u, a unit vector in the space of params, up to the solver's errors.
      amplitude: r, in the units of params.
    """

    centre: Params
    direction: Params
    amplitude: Float[Array, ""]


def edge_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    *,
    floor: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Flow:
    """Three coupled equations for `x_n = c + (-1)^n r u`.

        dc/dt = -(g(c + r u) + g(c - r u)) / 2,
        du/dt = H(c) u - s u,                      s = u.H(c) u / u.u,
        dr/dt = r (s - 2 / h).

    The centre descends the symmetrised loss `(L(c + r u) + L(c - r u)) / 2`, the direction climbs
    the Rayleigh quotient to the top eigenvector, and the amplitude grows as long as the sharpness
    is above the edge. It is rod flow (`driftlab.flows.rod_flow`) in polar coordinates, linearised
    in r in its last two lines: where the curvature at the centre does not feel the oscillation, as
    at the symmetric minimum of a quartic, the amplitude grows without end while rod flow's stops.

    As rod flow, it holds r at `floor`, which rounding provides in gradient descent.

    Args:
      loss: `loss(params) -> scalar`, or an objective over all its data.
      learning_rate: h; may be traced.
      floor: the amplitude below which r does not fall; None for the dtype's epsilon times the
        length of c; 0 for none.
      batch_size: with an objective, examples at once; None for all.

    Returns:
      The flow; its state is an `Edge`. `init(params)` finds the Hessian's top eigenvector, and
      splits off the alternating part of the next iterations along it. `params(y)` is the centre.

    Raises:
      ValueError: if the learning rate is not positive, or floor negative.
      TypeError: from the field, if a parameter is not a real floating-point array.

    Source: Marion (2026), "Edge flow: a tractable and predictive continuous-time model for gradient
    descent at the edge of stability", for the three variables and what drives them; the equations
    here are derived from the two-step map. Cost: two gradients and one Hessian-vector product an
    evaluation.
    """
    check_learning_rate(learning_rate)
    check_floor(floor)
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Edge, args: Any) -> Edge:
        del t, args
        ahead, behind = (
            gradient(
                jax.tree.map(
                    lambda c, u, s=sign: (c + s * y.amplitude * u).astype(c.dtype),
                    y.centre, y.direction,
                )
            )
            for sign in (1, -1)
        )  # fmt: skip
        image = jax.jvp(gradient, (y.centre,), (y.direction,))[1]
        length = optax.tree.vdot(y.direction, y.direction)
        sharpness = optax.tree.vdot(y.direction, image) / length
        rate = y.amplitude * (sharpness - 2 / learning_rate)
        held = (y.amplitude < floor_of(floor, y.centre)) & (rate < 0)
        return Edge(
            jax.tree.map(lambda a, b: -(a + b) / 2, ahead, behind),
            jax.tree.map(lambda i, u: (i - sharpness * u).astype(u.dtype), image, y.direction),
            jnp.where(held, 0, rate).astype(y.amplitude.dtype),
        )

    def init(params: Params) -> Edge:
        # Here, not at the top: the curvature package brings lineax with it.
        import lineax

        from driftlab.curvature.eigenpairs import eigenpairs

        params = jax.tree.map(jnp.asarray, params)
        product = jax.linearize(gradient, params)[1]
        operator = lineax.FunctionLinearOperator(
            product, jax.eval_shape(lambda: params), lineax.symmetric_tag
        )
        vectors = eigenpairs(operator, 1).vectors
        direction = jax.tree.map(lambda leaf: leaf[0], vectors)
        along = jnp.asarray(optax.tree.vdot(direction, split(params, gradient, learning_rate).half))
        # The sign belongs to the direction, so that the amplitude is not negative.
        sign = jnp.where(along < 0, -1, 1)
        return Edge(
            jax.tree.map(lambda p, u: (p - along * u).astype(p.dtype), params, direction),
            jax.tree.map(lambda u: (sign * u).astype(u.dtype), direction),
            jnp.maximum(abs(along), floor_of(floor, params)).astype(optax.tree.norm(params).dtype),
        )

    return Flow(field, init, lambda y: y.centre)
