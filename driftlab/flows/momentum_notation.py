"""Momentum in everybody's symbols, and the constants that the theorems on it turn on.

Throughout h is `learning_rate` and m is `momentum` as `optax.sgd` has them: `t_n = g_n + m t_{n-1}`
with `t_{-1} = 0`; heavy ball moves by `-h t_n`, Nesterov by `-h (g_n + m t_n)`, and g_n is taken at
the parameters. In Kovachki & Stuart's unified scheme, with velocity `v = (u_n - u_{n-1}) / h`,

    v_{n+1} = m v_n - grad L(u_n + h a v_n),    u_{n+1} = u_n + h v_{n+1},

a = 0 is heavy ball and a = m Nesterov, whose look-ahead points `u_n + h m v_n` are optax's
parameters.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from driftlab.hyperparameters import check_decay, check_positive
from driftlab.objective import Params

Correction = Literal["flow", "step", "velocity"]


class MomentumNotations(NamedTuple):
    """The hyper-parameters of one and the same method in each convention.

    Attributes:
      optax: `optax.sgd(**notations.optax)`; torch.optim.SGD without dampening is the same, its lr
        being h.
      kovachki_stuart: h, `lam` (their lambda, m) and `a` of the unified scheme.
      sutskever: `v' = mu v - eps g(theta [+ mu v])`, `theta' = theta + v'`. The learning rate is in
        the velocity there, so that the methods part once it changes in a run.
      ema: an average of gradients, `optax.chain(optax.ema(decay, debias=False),
        optax.scale(-learning_rate))`; None for Nesterov.
      dampened: `t' = m t + (1 - dampening) g`, PyTorch's, with dampening = m; None for Nesterov.
      effective_learning_rate: `h / (1 - m)`, that of the gradient descent it is in the limit.
    """

    optax: dict[str, Any]
    kovachki_stuart: dict[str, Any]
    sutskever: dict[str, Any]
    ema: dict[str, Any] | None
    dampened: dict[str, Any] | None
    effective_learning_rate: Any


def momentum_notations(
    learning_rate: ArrayLike, momentum: ArrayLike, nesterov: bool = False
) -> MomentumNotations:
    """What optax's hyper-parameters are called, and worth, elsewhere.

    A sweep over the momentum must say what it holds fixed: at a fixed h the effective learning
    rate `h / (1 - m)` grows with m; where averages are taken, h is `learning_rate * (1 - m)`.

    Args:
      learning_rate: h of `optax.sgd`.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.

    Returns:
      The notations. All give the same parameters, but Kovachki & Stuart's and Sutskever's
      Nesterov, whose points are `u = p + h m t`; see `unified_points`.

    Raises:
      ValueError: if a number is out of range.

    Source: Kovachki & Stuart (2021), section 1; Sutskever, Martens, Dahl & Hinton (2013),
      equations 1 to 4.
    """
    check_positive("learning_rate", learning_rate)
    check_decay("momentum", momentum)
    effective = learning_rate / (1 - momentum)
    averaged = {"learning_rate": effective, "decay": momentum}
    dampened = {"learning_rate": effective, "momentum": momentum, "dampening": momentum}
    return MomentumNotations(
        optax={"learning_rate": learning_rate, "momentum": momentum, "nesterov": nesterov},
        kovachki_stuart={"h": learning_rate, "lam": momentum, "a": lookahead(momentum, nesterov)},
        sutskever={"eps": learning_rate, "mu": momentum},
        ema=None if nesterov else averaged,
        dampened=None if nesterov else dampened,
        effective_learning_rate=effective,
    )


def unified_points(
    params: Params,
    trace: Params,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
) -> tuple[Params, Params]:
    """Kovachki & Stuart's u_n and v_n from optax's parameters and trace.

    `v_n = -t_{n-1}`, and `u_n = p_n` for heavy ball, `u_n = p_n + h m t_{n-1}` for Nesterov.

    Args:
      params: p_n.
      trace: t_{n-1}, what the state after n updates holds (`optax.TraceState.trace`).
      learning_rate: h.
      momentum: m.
      nesterov: as in `optax.sgd`.

    Returns:
      `(u_n, v_n)`; v_n in loss / parameter, as a gradient.
    """
    velocity = combine((-1.0, trace))
    if not nesterov:
        return params, velocity
    return combine((1.0, params), (learning_rate * momentum, trace)), velocity


def lookahead(momentum: ArrayLike, nesterov: bool = False) -> Any:
    """The look-ahead a of the unified scheme: 0 for heavy ball, m for Nesterov.

    Args:
      momentum: m.
      nesterov: which method.
    """
    return momentum if nesterov else 0.0 * momentum


def inertia(momentum: ArrayLike, nesterov: bool = False) -> Any:
    """The inertia alpha in `h alpha u'' + (1 - m) u' = -grad L(u)`.

    `alpha = (1 + m - 2 a (1 - m)) / 2`: `(1 + m) / 2` for heavy ball, `(1 - m + 2 m^2) / 2` for
    Nesterov.

    Args:
      momentum: m.
      nesterov: which method.

    Source: Kovachki & Stuart (2021), theorem on the momentum-dependent second derivative.
    """
    return (1 + momentum - 2 * lookahead(momentum, nesterov) * (1 - momentum)) / 2


def modified_loss_coefficient(
    momentum: ArrayLike, nesterov: bool = False, of: Correction = "flow"
) -> Any:
    """The factor k in the modified loss `L + (h / 2) k |grad L|^2`, of which there are three.

    With `b = 1 / (1 - m)`:

    | of | what it describes | k | heavy ball | Nesterov |
    |---|---|---|---|---|
    | `velocity` | `v = -b grad L_h(u)`, the manifold | `b (b - a)` | `b^2` | `(1 - m + m^2) b^2` |
    | `step` | `u_{n+1} = u_n - h b grad L_h(u_n)` | `b (m b - a)` | `m b^2` | `m^2 b^2` |
    | `flow` | `u' = -b grad L_h(u)` | `alpha b^2` | `(1 + m) b^2 / 2` | `(1 - m + 2 m^2) b^2 / 2` |

    The last is the mean of the others; as a multiple of the effective learning rate it is
    `(h_eff / 4) (1 + m) / (1 - m) |grad L|^2`, the factor by which heavy ball regularises more than
    gradient descent.

    Args:
      momentum: m.
      nesterov: which method.
      of: `flow` for an ODE; `step` for a memoryless iteration; `velocity` for backward differences.

    Raises:
      ValueError: if there is no such object.

    Source: Kovachki & Stuart (2021), theorem on the invariant manifold (`velocity`); Cattaneo &
      Shigida (2025) (`step`); Ghosh, Lyu, Zhang & Wang (2023) (`flow`, heavy ball).
    """
    gain = 1 / (1 - momentum)
    ahead = lookahead(momentum, nesterov)
    if of == "flow":
        return inertia(momentum, nesterov) * gain**2
    if of == "step":
        return gain * (momentum * gain - ahead)
    if of == "velocity":
        return gain * (gain - ahead)
    raise ValueError(f"of={of!r} must be 'flow', 'step' or 'velocity'.")


def initial_shift(momentum: ArrayLike, nesterov: bool = False) -> Any:
    """The shift s of the start, `theta_0 + h s grad L(theta_0)`, of a flow through the iterates.

    The trace starts at 0, so that the first 1 / (1 - m) iterations lag behind the flow, for good:
    `s = m / (1 - m)^2` for heavy ball, `m^2 / (1 - m)^2` for Nesterov's parameters in optax.

    Args:
      momentum: m.
      nesterov: which method.
    """
    return (momentum**2 if nesterov else momentum) / (1 - momentum) ** 2


def stability_threshold(
    learning_rate: ArrayLike, momentum: ArrayLike, nesterov: bool = False
) -> Any:
    """The curvature above which the method diverges on a quadratic.

    `(2 + 2 m) / h` for heavy ball, `(2 + 2 m) / (h (1 + 2 m))` for Nesterov.

    Args:
      learning_rate: h.
      momentum: m.
      nesterov: which method.

    Returns:
      In loss / parameter^2.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar (2021), appendix B.
    """
    return (2 + 2 * momentum) / (learning_rate * (1 + 2 * lookahead(momentum, nesterov)))


def correction_limit(learning_rate: ArrayLike, momentum: ArrayLike, nesterov: bool = False) -> Any:
    """The curvature at which the modified flow's correction is as large as its leading term.

    `1 / (h k)`, for heavy ball `2 (1 - m)^2 / (h (1 + m))`: at m = 0.9 a 360th of the stability
    threshold. Well below it the modified flow is worth having; the inertial one has no such limit.

    Args:
      learning_rate: h.
      momentum: m.
      nesterov: which method.

    Returns:
      In loss / parameter^2.
    """
    return 1 / (learning_rate * modified_loss_coefficient(momentum, nesterov))


def combine(*terms: tuple[Any, PyTree[Array]]) -> PyTree[Array]:
    """`sum_i c_i tree_i` in the types of the first tree.

    Args:
      *terms: pairs (number, tree), all trees of one structure.
    """
    trees = [tree for _, tree in terms]

    def add(*leaves: Array) -> Array:
        dtype = jnp.result_type(leaves[0])
        # A learning rate in float64 would make float32 parameters float64.
        scaled = [jnp.asarray(c, dtype) * leaf for (c, _), leaf in zip(terms, leaves, strict=True)]
        return sum(scaled[1:], scaled[0])

    return jax.tree.map(add, *trees)
