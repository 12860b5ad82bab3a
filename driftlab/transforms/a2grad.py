"""A2Grad: Nesterov's accelerated stochastic gradient with an adaptive step for the noise alone.

Source: Deng, Cheng & Lan (2018), "Optimal adaptive and accelerated stochastic gradient descent",
algorithms 2 to 7.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from driftlab.flows.a2grad_flow import exponent_of
from driftlab.hyperparameters import check_range
from driftlab.objective import Params

Projection = Callable[[Params, Params], Params]


class A2GradState(NamedTuple):
    """What `a2grad` remembers, in float32 at least.

    Attributes:
      count: k, the iterations done.
      mirror: x_k, the sequence that takes the steps.
      gradient_mean: the mean of the gradients so far.
      accumulator: v_{k-1}, of which `h_{k-1}` is made; a scalar a leaf unless per coordinate.
      moving_average: that of the squared deviations, of the variant "exponential"; else `()`.
    """

    count: Int[Array, ""]
    mirror: Params
    gradient_mean: Params
    accumulator: PyTree[Array]
    moving_average: PyTree[Array]

    def eval_params(self, params: Params) -> Params:
        """The average sequence, `xbar_k = y_k + (2 / k) (y_k - x_k)`, the method's output.

        Args:
          params: y_k.

        Returns:
          The structure and types of params; y_0 itself at k = 0.
          `driftlab.dynamics.eval_params` finds this method.
        """

        def leaf(mirror: Any, param: Any) -> Any:
            if _is_masked(mirror):
                return param
            k = self.count.astype(mirror.dtype)
            weight = jnp.where(k > 0, 2 / jnp.maximum(k, 1), 0)
            return (param + weight * (param - mirror)).astype(param.dtype)

        return jax.tree.map(leaf, self.mirror, params, is_leaf=_is_masked)


def a2grad(
    lipschitz: ArrayLike | optax.Schedule = 10.0,
    beta: ArrayLike | optax.Schedule = 10.0,
    variant: str = "uniform",
    *,
    q: ArrayLike | None = None,
    decay: ArrayLike = 0.9,
    per_coordinate: bool = True,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive and accelerated stochastic gradient descent.

    Three sequences from `x_0 = xbar_0 = y_0`, with `alpha_k = 2 / (k + 2)` and G_k the stochastic
    gradient at y_k:

        y_k = (1 - alpha_k) xbar_k + alpha_k x_k
        x_{k+1} = x_k - G_k / (2 lipschitz / (k + 1) + beta h_k)
        xbar_{k+1} = (1 - alpha_k) xbar_k + alpha_k x_{k+1}

    The params given to update are the y_k, where gradients are taken; xbar_k, to which the theory
    applies, is the state's `eval_params`. Without noise the step grows with k, as Nesterov's does;
    h_k tames it by the deviations `delta_k = G_k - mean(G_0 .. G_k)`, squared by coordinate:

        uniform      h_k = sqrt(sum_j delta_j^2)
        incremental  h_k = sqrt(sum_j (j + 1)^2 delta_j^2) / (k + 1)
        polynomial   h_k = sqrt(sum_j (j + 1)^q delta_j^2 / (k + 1)^q), of which these are q = 0, 2
        exponential  h_k = sqrt((k + 1) max_{j <= k} a_j), a_j the moving average of delta^2

    The first deviation is 0 and the first step `1 / (2 lipschitz)`, whatever the noise. There is
    no learning rate; `1 / lipschitz` scales the deterministic steps, `1 / beta` the noisy ones.
    Nothing may follow it in a chain: what it returns keeps the three sequences together. Weight
    decay and clipping come before it, `optax.chain(optax.add_decayed_weights(1e-4), a2grad())`.

    Args:
      lipschitz: L, that of the gradient (loss / parameter^2), in practice a hyper-parameter;
        positive. A number, a traced array (a lane axis) or a schedule of the iteration.
      beta: the adaptive term's factor (1 / parameter), 0 or more; likewise. The paper tunes 10 to
        1000, 1 is often better. 0 is Nesterov's method.
      variant: one of `driftlab.flows.a2grad_flow.VARIANTS`.
      q: the exponent of "polynomial", from 0 to 2; may be traced.
      decay: rho in [0, 1) of "exponential", which the paper leaves open; may be traced.
      per_coordinate: False for one h_k a leaf, of the sum of its squares: not the paper's method,
        but that of the public PyTorch ports, which train worse for it.
      projection: `projection(point, metric) -> point` onto the convex set that x is kept in (and
        y and xbar with it): the member of least `sum metric (x - point)^2`. For a box that is
        clipping, whatever the metric. None for no constraint.

    Returns:
      The transformation; its update needs params. It takes an extra argument `exact_gradient`, the
      gradient without noise at params, for deviations from that instead of from the mean.

    Raises:
      ValueError: for an argument out of range, a variant that does not exist, a q that is missing
        or has no effect; from update, without params.
      TypeError: from init, for params that are not real floating-point arrays.

    Cost: three times the parameters' memory ("exponential": four) and some 20 elementwise
    operations a parameter; no gradient beyond the one given.
    """
    if not callable(lipschitz):
        check_range("lipschitz", lipschitz, "positive and finite", lambda value: value > 0)
    if not callable(beta):
        check_range("beta", beta, "0 or more, and finite", lambda value: value >= 0)
    check_range("decay", decay, "at least 0 and below 1", lambda value: 0 <= value < 1)
    exponent = exponent_of(variant, q)
    exponential = variant == "exponential"

    def init(params: Params) -> A2GradState:
        _check_floating(params)
        # A copy, also where the type stays: params may be donated.
        mirror = jax.tree.map(lambda p: jnp.array(p, _dtype(p)), params)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape if per_coordinate else (), x.dtype), mirror
        )
        return A2GradState(
            count=jnp.zeros((), jnp.int32),
            mirror=mirror,
            gradient_mean=optax.tree.zeros_like(mirror),
            accumulator=zeros,
            moving_average=optax.tree.zeros_like(zeros) if exponential else (),
        )

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        *,
        exact_gradient: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, A2GradState]:
        del extra_args
        if params is None:
            raise ValueError("a2grad needs params, its y_k: call update(grads, state, params).")
        count = state.count
        level: Any = lipschitz(count) if callable(lipschitz) else lipschitz
        factor: Any = beta(count) if callable(beta) else beta
        gradient = jax.tree.map(lambda g, x: g.astype(x.dtype), updates, state.mirror)

        def k_of(leaf: Array) -> Float[Array, ""]:
            return count.astype(leaf.dtype)

        mean = jax.tree.map(lambda m, g: m + (g - m) / (k_of(m) + 1), state.gradient_mean, gradient)
        expected = mean if exact_gradient is None else exact_gradient
        squares = jax.tree.map(lambda g, m: jnp.square(g - m.astype(g.dtype)), gradient, expected)
        if not per_coordinate:
            squares = jax.tree.map(jnp.sum, squares)

        average: PyTree = ()
        if exponential:

            def averaged(a: Array, d: Array) -> Array:
                rho = jnp.where(count == 0, 0, jnp.asarray(decay, d.dtype))
                return rho * a + (1 - rho) * d

            average = jax.tree.map(averaged, state.moving_average, squares)
            accumulator = jax.tree.map(jnp.maximum, state.accumulator, average)
            scales = jax.tree.map(lambda v: jnp.sqrt((k_of(v) + 1) * v), accumulator)
        else:

            def accumulated(v: Array, d: Array) -> Array:
                k = k_of(d)
                return (k / (k + 1)) ** jnp.asarray(exponent, d.dtype) * v + d

            accumulator = jax.tree.map(accumulated, state.accumulator, squares)
            scales = jax.tree.map(jnp.sqrt, accumulator)

        def metric_of(h: Array) -> Array:
            gamma = 2 * jnp.asarray(level, h.dtype) / (k_of(h) + 1)
            return gamma + jnp.asarray(factor, h.dtype) * h

        metric = jax.tree.map(metric_of, scales)
        steps = jax.tree.map(lambda g, c: -g / c, gradient, metric)
        mirror = jax.tree.map(jnp.add, state.mirror, steps)
        if projection is not None:
            full = jax.tree.map(lambda c, x: jnp.broadcast_to(c, x.shape), metric, mirror)
            mirror = projection(mirror, full)
            steps = jax.tree.map(jnp.subtract, mirror, state.mirror)

        def moved(x: Array, step: Array, y: Array) -> Array:
            """y_{k+1} - y_k, from `xbar_{k+1} = y_k + alpha_k (x_{k+1} - x_k)`."""
            k = k_of(x)
            now, following = 2 / (k + 2), 2 / (k + 3)
            return (following * (x - y) + (1 - following) * now * step).astype(y.dtype)

        moves = jax.tree.map(moved, mirror, steps, params)
        following = jnp.asarray(optax.safe_increment(count))
        return moves, A2GradState(following, mirror, mean, accumulator, average)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_floating(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path) or "params"
            raise TypeError(
                f"parameter {name} has dtype {dtype}; a2grad moves real floating-point arrays. "
                "Keep others out of it with optax.masked or optax.partition."
            )


def _dtype(param: Any) -> Any:
    """Of the state: that of the parameter, at least float32."""
    return jnp.promote_types(jnp.result_type(param), jnp.float32)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
