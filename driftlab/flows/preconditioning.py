"""Optimisers as a preconditioner with a memory: what central and stable flows are made for.

`w_{n+1} = w_n - P(m_n)^{-1} g(w_n)`, where m_n has seen g(w_n) already and P holds the learning
rate: P = 1 / h for gradient descent. The edge of stability is where `P^{-1} H` has the eigenvalue
2. Time counts iterations, t = n.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.objective import Params

Memory = PyTree[Array]
Rate = ArrayLike | Callable[[Any], ArrayLike]


class Preconditioning(NamedTuple):
    """An optimiser without momentum.

    Attributes:
      init: `init(params, gradient) -> m`, after the first gradient; floating-point arrays.
      rate: `rate(m, gradient) -> dm/dt` in iteration time, at most quadratic in the gradient, as
        a mean of squares is: what oscillations add to it is then exact.
      diagonal: `diagonal(m) -> P`, a number for all parameters or a tree like them.
    """

    init: Callable[[Params, Params], Memory]
    rate: Callable[[Memory, Params], Memory]
    diagonal: Callable[[Memory], PyTree[Array]]


def gradient_descent(learning_rate: ArrayLike) -> Preconditioning:
    """Gradient descent, `P = 1 / h`.

    Args:
      learning_rate: h; may be traced.

    Returns:
      It, without memory.

    Raises:
      ValueError: if it is not positive.
    """
    _check_positive("learning_rate", learning_rate)
    return Preconditioning(
        init=lambda params, gradient: (),
        rate=lambda memory, gradient: (),
        diagonal=lambda memory: 1 / jnp.asarray(learning_rate),
    )


def scalar_rmsprop(learning_rate: ArrayLike, decay: ArrayLike, eps: ArrayLike) -> Preconditioning:
    """RMSProp with one second moment: `nu' = k (|g|^2 - nu)`, `P = (sqrt(nu) + eps) / h`.

    `k = (1 - decay) / decay`, for `nu_n - nu_{n-1} = k (|g_n|^2 - nu_n)` and the step divides by
    nu_n. nu starts at |g|^2.

    Args:
      learning_rate: h.
      decay: b2, between 0 and 1.
      eps: outside of the root.

    Returns:
      It; its memory is nu.

    Raises:
      ValueError: if a number is out of range.

    Source: Cohen et al. (2025), section 4.
    """
    _check_positive("learning_rate", learning_rate)
    _check_decay(decay)
    factor = (1 - jnp.asarray(decay)) / decay

    def square(gradient: Params) -> Float[Array, ""]:
        return optax.tree.norm(gradient, squared=True)

    def rate(nu: Array, gradient: Params) -> Array:
        return (factor * (square(gradient) - nu)).astype(nu.dtype)

    return Preconditioning(
        init=lambda params, gradient: square(gradient),
        rate=rate,
        diagonal=lambda nu: (jnp.sqrt(nu) + eps) / learning_rate,
    )


def rmsprop(learning_rate: ArrayLike, decay: ArrayLike, eps: ArrayLike) -> Preconditioning:
    """RMSProp: `nu' = k (g^2 - nu)` entry by entry, `P = diag(sqrt(nu) + eps) / h`.

    `k = (1 - decay) / decay`, as in `scalar_rmsprop`. nu starts at g^2, which is what bias
    correction makes of the first step, and is not corrected afterwards.

    Args:
      learning_rate: h.
      decay: b2, between 0 and 1.
      eps: outside of the root; keeps P positive where the gradient is 0.

    Returns:
      It; its memory is nu, a tree like params.

    Raises:
      ValueError: if a number is out of range.

    Source: Cohen et al. (2025), section 5.
    """
    _check_positive("learning_rate", learning_rate)
    _check_decay(decay)
    factor = (1 - jnp.asarray(decay)) / decay

    def rate(nu: Params, gradient: Params) -> Params:
        return jax.tree.map(
            lambda nu, g: (factor * (jnp.square(g) - nu)).astype(nu.dtype), nu, gradient
        )

    return Preconditioning(
        init=lambda params, gradient: jax.tree.map(jnp.square, gradient),
        rate=rate,
        diagonal=lambda nu: jax.tree.map(lambda nu: (jnp.sqrt(nu) + eps) / learning_rate, nu),
    )


def from_optax(
    tx: optax.GradientTransformation,
    learning_rate: ArrayLike,
    *,
    opt_state: PyTree | None = None,
    **reading: Any,
) -> Preconditioning:
    """Any optax chain whose step is `-learning_rate g / P`, P from its state.

    P is what `driftlab.curvature.preconditioner` reads: RMSProp's, Adagrad's, or that of a state of
    your own with a method `preconditioner()`. The memory is the state, its counters included, as
    floating-point numbers. With F the state's own update, entry by entry and affine in the state
    (as moving averages, sums and counters are), `dm/dt = (F(m, g) - m) / (dF/dm)`: a rate at the
    state *after* the step, which is the one that the step divides by. For a moving average that is
    `(1 - b2) / b2 (g^2 - nu)`, for a counter 1.

    Where values are known (outside of `jax.jit`), `init` compares two steps of the chain with
    `-learning_rate g / P`, and refuses it if they differ: momentum, clipping, weight decay, another
    learning rate, or hyper-parameters that `reading` does not tell.

    Args:
      tx: the chain, its learning rate constant.
      learning_rate: which the state does not tell.
      opt_state: the chain's state at the start, for a flow that begins in the middle of a run;
        None for a fresh one.
      **reading: `b2`, `eps`, `eps_root`, `eps_in_sqrt`, as `curvature.preconditioner` takes them.

    Returns:
      It.

    Raises:
      ValueError: if the learning rate is not positive; from `init`, if the state holds a first
        moment, no second moment, or the chain's step is another.
    """
    _check_positive("learning_rate", learning_rate)

    def diagonal(memory: Memory) -> PyTree[Array]:
        from driftlab.curvature.preconditioner import preconditioner

        read = preconditioner(memory, **reading)
        return jax.tree.map(lambda leaf: leaf / learning_rate, read)

    def advance(memory: Memory, gradient: Params, params: Params | None = None) -> Memory:
        return tx.update(gradient, memory, gradient if params is None else params)[1]

    def init(params: Params, gradient: Params) -> Memory:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        memory = _floating(tx.init(params) if opt_state is None else opt_state, dtype)
        _refuse_momentum(memory)
        memory = advance(memory, gradient, params)
        _check_step(tx, params, gradient, diagonal, dtype)
        return memory

    def rate(memory: Memory, gradient: Params) -> Memory:
        ones = jax.tree.map(jnp.ones_like, memory)
        after, slope = jax.jvp(lambda m: advance(m, gradient), (memory,), (ones,))
        return jax.tree.map(lambda new, old, s: (new - old) / s, after, memory, slope)

    return Preconditioning(init, rate, diagonal)


def _floating(state: PyTree, dtype: Any) -> PyTree:
    def convert(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(dtype)

    return jax.tree.map(convert, state)


# Fields of optax states that hold an average of gradients, or of updates.
_FIRST_MOMENTS = ("mu", "trace", "m", "momentum", "ema")


def _refuse_momentum(state: PyTree) -> None:
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        found = [name for name in names if name in _FIRST_MOMENTS]
        if found:
            raise ValueError(
                f"the optimiser's state holds a first moment ({jax.tree_util.keystr(path)}): its "
                "step is no preconditioned gradient, and no central flow is known for it. Leave "
                "momentum out (scale_by_rms for Adam), or follow driftlab.flows.rod_flow."
            )


def _check_step(
    tx: optax.GradientTransformation,
    params: Params,
    gradient: Params,
    diagonal: Callable[[Memory], PyTree[Array]],
    dtype: Any,
) -> None:
    """Compares two steps with what P says, where values are known."""
    memory = _floating(tx.init(params), dtype)
    for scale in (1.0, 0.5):
        probe = jax.tree.map(lambda g, s=scale: s * g, gradient)
        updates, memory = tx.update(probe, memory, params)
        expected = jax.tree.map(lambda g, p: -g / p, probe, diagonal(memory))
        error = optax.tree.norm(jax.tree.map(jnp.subtract, updates, expected))
        size = optax.tree.norm(expected)
        if isinstance(error, Tracer):
            return
        tolerance = float(jnp.finfo(size.dtype).eps) ** 0.5
        if not float(error) <= tolerance * float(size):
            raise ValueError(
                f"the chain's step differs from -learning_rate g / P by {float(error):.3g}, of "
                f"{float(size):.3g}: give the learning rate, b2, eps and eps_in_sqrt that it was "
                "made with, and leave out what is not a preconditioned gradient (momentum, "
                "clipping, decoupled weight decay: that one can be a regulariser of the objective)."
            )


def _check_positive(name: str, value: Any) -> None:
    if callable(value):
        raise ValueError(f"{name} must be a number, not a schedule; got {value!r}.")
    if isinstance(value, Tracer):
        return
    if not (np.isfinite(value).all() and np.all(np.asarray(value) > 0)):
        raise ValueError(f"{name} must be positive and finite; got {value!r}.")


def _check_decay(decay: Any) -> None:
    if isinstance(decay, Tracer):
        return
    if not np.all((np.asarray(decay) > 0) & (np.asarray(decay) < 1)):
        raise ValueError(f"decay={decay!r} must lie between 0 and 1, both excluded.")
