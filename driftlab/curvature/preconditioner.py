"""The diagonal that an adaptive optimiser divides by, read from its optax state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def preconditioner(
    opt_state: PyTree,
    *,
    b2: float | Float[Array, ""] | None = None,
    eps: float | Float[Array, ""] | None = None,
    eps_root: float | Float[Array, ""] = 0.0,
    eps_in_sqrt: bool = True,
    identity_like: PyTree[Array] | None = None,
) -> PyTree[Array]:
    """P, such that the update is `-learning_rate P^{-1} m` with m the (averaged) gradient.

    - Adam, AdamW, NAdam, Yogi, ...: `sqrt(nu / (1 - b2^t) + eps_root) + eps`
    - AdaBelief: `sqrt(nu / (1 - b2^t)) + eps`
    - AMSGrad: `sqrt(nu_max) + eps`
    - RMSProp: `sqrt(nu + eps)`, or `sqrt(nu) + eps` without `eps_in_sqrt`, with nu corrected for
      bias if the state counts; centred, `nu - mu^2` in the place of nu
    - Adagrad: `sqrt(sum of squares + eps)`; infinite where no gradient has come yet, as no update
      does
    - a state of your own: what its method `preconditioner()` returns

    The state is that *after* the step whose P is wanted, for an update divides by moments that
    hold its own gradient. Chains, masks, `partition`, `inject_hyperparams` and the like are looked
    through.

    Args:
      opt_state: an optax state.
      b2: decay of the second moment, which the state does not tell; None for 0.999 (0.9 for
        RMSProp), or what an `inject_hyperparams` state holds.
      eps: likewise; None for the optax alias' own.
      eps_root: Adam's and Yogi's, inside the root.
      eps_in_sqrt: of RMSProp.
      identity_like: params; then P = 1 wherever the state holds no second moment. None makes that
        an error.

    Returns:
      The diagonal of P: a tree like params.

    Raises:
      ValueError: if the state holds no second moment that is known here, or two for one parameter.
        Adamax (whose state looks like Adam's) divides by `nu` itself: pass that instead.

    Source: optax 0.2.8's update rules; Cohen et al. (2022), "Adaptive gradient methods at the edge
    of stability", section 2, for the use of P.
    """
    states = jax.tree.leaves(opt_state, is_leaf=_is_known)
    found = [state for state in states if _is_known(state)]
    given = {"b2": b2, "eps": eps}
    injected = _injected(opt_state)
    for name, alternatives in (("b2", ("b2", "decay")), ("eps", ("eps",))):
        for other in alternatives:
            if given[name] is None and other in injected:
                given[name] = injected[other]
    fixed = {"eps_root": eps_root, "eps_in_sqrt": eps_in_sqrt, **given}
    if not found:
        if identity_like is not None:
            return jax.tree.map(jnp.ones_like, identity_like)
        raise ValueError(
            "the optimiser's state holds no second moment, so there is no preconditioner to read; "
            f"known are {sorted(_RULES)} and states with a method "
            "preconditioner(). For one without, such as SGD, pass identity_like=params."
        )
    diagonals = [_diagonal(state, fixed) for state in found]
    return _merged(diagonals, identity_like)


def _diagonal(state: Any, given: Mapping[str, Any]) -> PyTree[Array]:
    rule = _RULES.get(type(state).__name__)
    return state.preconditioner() if rule is None else rule(state, **given)


def _adam(state: Any, b2: Any, eps: Any, eps_root: Any, **_: Any) -> PyTree[Array]:
    eps = 1e-8 if eps is None else eps
    correction = 1 - (0.999 if b2 is None else b2) ** state.count
    return _map(lambda nu: jnp.sqrt(nu / correction + eps_root) + eps, state.nu)


def _belief(state: Any, b2: Any, eps: Any, **_: Any) -> PyTree[Array]:
    # optax has added eps_root to nu before it stored it.
    return _adam(state, b2, 1e-16 if eps is None else eps, 0.0)


def _amsgrad(state: Any, eps: Any, **_: Any) -> PyTree[Array]:
    eps = 1e-8 if eps is None else eps
    return _map(lambda nu: jnp.sqrt(nu) + eps, state.nu_max)


def _rms(state: Any, b2: Any, eps: Any, eps_in_sqrt: bool, **_: Any) -> PyTree[Array]:
    eps = 1e-8 if eps is None else eps
    decay = 0.9 if b2 is None else b2
    correction = 1 - decay**state.count if hasattr(state, "count") else 1

    def root(square: Array) -> Array:
        return jnp.sqrt(square + eps) if eps_in_sqrt else jnp.sqrt(square) + eps

    if not hasattr(state, "mu"):
        return _map(lambda nu: root(nu / correction), state.nu)
    return _map(lambda nu, mu: root(nu / correction - (mu / correction) ** 2), state.nu, state.mu)


def _adagrad(state: Any, eps: Any, **_: Any) -> PyTree[Array]:
    eps = 1e-7 if eps is None else eps
    return _map(
        lambda total: jnp.where(total > 0, jnp.sqrt(total + eps), jnp.inf), state.sum_of_squares
    )


# By name: optax does not export the states that count.
_RULES: dict[str, Callable[..., PyTree[Array]]] = {
    "ScaleByAdamState": _adam,
    "ScaleByBeliefState": _belief,
    "ScaleByAmsgradState": _amsgrad,
    "ScaleByRmsState": _rms,
    "ScaleByRmsWithCountState": _rms,
    "ScaleByRStdDevState": _rms,
    "ScaleByRStdDevWithCountState": _rms,
    "ScaleByRssState": _adagrad,
}


def _is_known(node: Any) -> bool:
    return type(node).__name__ in _RULES or callable(getattr(node, "preconditioner", None))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _map(function: Callable[..., Array], *trees: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(
        lambda leaf, *rest: leaf if _is_masked(leaf) else function(leaf, *rest),
        *trees,
        is_leaf=_is_masked,
    )


def _injected(opt_state: PyTree) -> dict[str, Any]:
    def holds(node: Any) -> bool:
        return isinstance(getattr(node, "hyperparams", None), Mapping)

    hyperparams: dict[str, Any] = {}
    for node in jax.tree.leaves(opt_state, is_leaf=holds):
        if holds(node):
            hyperparams |= node.hyperparams
    return hyperparams


def _merged(diagonals: list[PyTree[Array]], identity_like: PyTree[Array] | None) -> PyTree[Array]:
    """One diagonal from those of the groups that `optax.partition` and masks make."""
    columns = [jax.tree.leaves(diagonal, is_leaf=_is_masked) for diagonal in diagonals]
    structure = jax.tree.structure(diagonals[0], is_leaf=_is_masked)
    others = None if identity_like is None else jax.tree.leaves(identity_like)
    merged = []
    for index, leaves in enumerate(zip(*columns, strict=True)):
        present = [leaf for leaf in leaves if not _is_masked(leaf)]
        if len(present) == 1:
            merged.append(present[0])
        elif not present and others is not None:
            merged.append(jnp.ones_like(others[index]))
        else:
            raise ValueError(
                f"{len(present)} second moments belong to parameter leaf {index} in the "
                "optimiser's state, and one is needed: compute the diagonal yourself, or, where "
                "some parameters have none, pass identity_like=params."
            )
    return jax.tree.unflatten(structure, merged)
