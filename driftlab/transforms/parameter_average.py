"""An exponential moving average of the parameters, beside the optimiser that moves them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from driftlab.objective import Params


class ParameterAverageState(NamedTuple):
    """What `average_parameters` remembers.

    Attributes:
      inner: the wrapped optimiser's state.
      average: `sum_i w_i theta_i`.
      weight: `sum_i w_i`, of which 1 is missing at first.
      count: the iterations done.
    """

    inner: PyTree
    average: Params
    weight: Float[Array, ""]
    count: Int[Array, ""]

    def eval_params(self, params: Params) -> Params:
        """The average, `average / weight`; params themselves before the first update.

        Args:
          params: theta_k.

        Returns:
          The structure of params. `driftlab.dynamics.eval_params` finds this method.
        """

        def leaf(average: Array, param: Array) -> Array:
            weight = self.weight.astype(average.dtype)
            started = weight > 0
            return jnp.where(started, average / jnp.where(started, weight, 1), param)

        return jax.tree.map(leaf, self.average, params)


def average_parameters(
    tx: optax.GradientTransformation,
    decay: ArrayLike | optax.Schedule = 0.999,
    *,
    debias: bool = True,
) -> optax.GradientTransformation:
    """An optimiser with an exponential moving average of the parameters it makes.

    `a_{k+1} = d a_k + (1 - d) theta_{k+1}`: the trajectory stays that of tx, only what is evaluated
    (`Snapshot.eval_params`) is smoother. Generators are judged by it, since a game's iterates go
    round their equilibrium instead of to it.

    Args:
      tx: any optax chain.
      decay: d in [0, 1), or a schedule of the iteration; may be traced. About `1 / (1 - d)`
        iterates count.
      debias: whether the average starts from nothing and is divided by the weights it has
        received so far; else it starts from theta_0, which then counts for `d^k`.

    Returns:
      The transformation; its update needs params. What tx takes beyond them it is given.

    Raises:
      ValueError: if decay is a number outside [0, 1).

    Source: Yazici et al. (2019), The unusual effectiveness of averaging in GAN training; the
    division is that of Kingma & Ba (2015). Cost: one multiplication a parameter, no gradient.
    """
    if (
        not callable(decay)
        and not isinstance(decay, Tracer)
        and not 0 <= float(np.asarray(decay)) < 1
    ):
        raise ValueError(f"decay={decay} must be at least 0 and below 1.")

    def init(params: Params) -> ParameterAverageState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        start = jax.tree.map(jnp.zeros_like if debias else jnp.asarray, params)
        weight = jnp.asarray(0.0 if debias else 1.0, dtype)
        return ParameterAverageState(tx.init(params), start, weight, jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, ParameterAverageState]:
        if params is None:
            raise ValueError("average_parameters needs params: tx.update(updates, state, params).")
        updates, inner = tx.update(updates, state.inner, params, **extra)
        factor = decay(state.count) if callable(decay) else decay

        def mixed(old: Array, new: Array) -> Array:
            d = jnp.asarray(factor, old.dtype)
            return d * old + (1 - d) * new

        average = jax.tree.map(mixed, state.average, optax.apply_updates(params, updates))
        weight = mixed(state.weight, jnp.ones_like(state.weight))
        return updates, ParameterAverageState(inner, average, weight, state.count + 1)

    if isinstance(tx, optax.GradientTransformationExtraArgs):
        return optax.GradientTransformationExtraArgs(init, update)
    return optax.GradientTransformation(init, update)
