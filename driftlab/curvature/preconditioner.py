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
    eps_root: float | Float[Array, ""] | None = None,
    eps_in_sqrt: bool = True,
    identity_like: PyTree[Array] | None = None,
) -> PyTree[Array]:
    """P, such that the update is `-learning_rate P^{-1} m` with m the (averaged) gradient.

    - Adam, AdamW, NAdam, ...; Yogi, with eps=1e-3 given: `sqrt(nu / (1 - b2^t) + eps_root) + eps`
    - AdaBelief: `sqrt(nu / (1 - b2^t)) + eps`
    - AMSGrad: `sqrt(nu_max + eps_root) + eps`
    - RMSProp: `sqrt(nu + eps)`, or `sqrt(nu) + eps` without `eps_in_sqrt`, with nu corrected for
      bias if the state counts; centred, `nu - mu^2` in the place of nu
    - Adagrad: `sqrt(sum of squares + eps)`; infinite where no gradient has come yet, as no update
      does
    - a state of your own: what its method `preconditioner()` returns

    The state is that *after* the step whose P is wanted, for an update divides by moments that
    hold its own gradient. Chains, masks, `partition`, `inject_hyperparams` and the like are looked
    through. Some states look like Adam's and mean something else: Yogi's (its alias has eps=1e-3),
    RAdam's (divide P by its rectification; none of it at its first steps) and Adamax' (which
    divides by `nu` itself).

    Args:
      opt_state: an optax state.
      b2: decay of the second moment, which the state does not tell; None for 0.999 (0.9 for
        RMSProp), or what the `inject_hyperparams` state around it holds.
      eps: likewise; None for the optax alias' own.
      eps_root: of the Adam family, inside the root; None for 0, or what is injected.
      eps_in_sqrt: of RMSProp.
      identity_like: params; then P = 1 wherever the state holds no second moment. None makes that
        an error.

    Returns:
      The diagonal of P: a tree like params.

    Raises:
      ValueError: if the state holds no second moment that is known here, or two for one parameter.

    Source: optax 0.2.8's update rules; Cohen et al. (2022), "Adaptive gradient methods at the edge
    of stability", section 2, for the use of P.
    """
    given = {"b2": b2, "eps": eps, "eps_root": eps_root}
    found = _second_moments(opt_state, {})
    if not found:
        if identity_like is not None:
            return jax.tree.map(jnp.ones_like, identity_like)
        raise ValueError(
            "the optimiser's state holds no second moment, so there is no preconditioner to read; "
            f"known are {sorted(_RULES)} and states with a method "
            "preconditioner(). For one without, such as SGD, pass identity_like=params."
        )
    diagonals = [_diagonal(state, injected, given, eps_in_sqrt) for state, injected in found]
    return _merged(diagonals, identity_like, "")


def _diagonal(
    state: Any, injected: Mapping[str, Any], given: Mapping[str, Any], eps_in_sqrt: bool
) -> PyTree[Array]:
    rule = _RULES.get(type(state).__name__)
    if rule is None:
        return state.preconditioner()
    known = {"b2": injected.get("b2", injected.get("decay"))} | {
        name: injected.get(name) for name in ("eps", "eps_root")
    }
    known |= {name: value for name, value in given.items() if value is not None}
    return rule(state, eps_in_sqrt=eps_in_sqrt, **known)


def _adam(state: Any, b2: Any, eps: Any, eps_root: Any, **_: Any) -> PyTree[Array]:
    eps, root = 1e-8 if eps is None else eps, 0 if eps_root is None else eps_root
    correction = 1 - (0.999 if b2 is None else b2) ** state.count
    return _map(lambda nu: jnp.sqrt(nu / correction + root) + eps, state.nu)


def _belief(state: Any, b2: Any, eps: Any, **_: Any) -> PyTree[Array]:
    # optax has added eps_root to nu before it stored it.
    return _adam(state, b2, 1e-16 if eps is None else eps, 0.0)


def _amsgrad(state: Any, eps: Any, eps_root: Any, **_: Any) -> PyTree[Array]:
    eps, root = 1e-8 if eps is None else eps, 0 if eps_root is None else eps_root
    return _map(lambda nu: jnp.sqrt(nu + root) + eps, state.nu_max)


def _rms(state: Any, b2: Any, eps: Any, eps_in_sqrt: bool, **_: Any) -> PyTree[Array]:
    eps = 1e-8 if eps is None else eps
    decay = 0.9 if b2 is None else b2
    correction = 1 - decay**state.count if "count" in state._fields else 1

    def root(square: Array) -> Array:
        return jnp.sqrt(square + eps) if eps_in_sqrt else jnp.sqrt(square) + eps

    if "mu" not in state._fields:
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


def _second_moments(
    opt_state: PyTree, injected: Mapping[str, Any]
) -> list[tuple[Any, Mapping[str, Any]]]:
    """The states that hold second moments, with the hyper-parameters injected around each."""

    def is_stop(node: Any) -> bool:
        return _is_known(node) or _is_injecting(node)

    found = []
    for node in jax.tree.leaves(opt_state, is_leaf=is_stop):
        if _is_known(node):
            found.append((node, injected))
        elif _is_injecting(node):
            found += _second_moments(node.inner_state, {**injected, **node.hyperparams})
    return found


def _is_injecting(node: Any) -> bool:
    return isinstance(getattr(node, "hyperparams", None), Mapping) and hasattr(node, "inner_state")


def _merged(trees: list[PyTree], identity_like: PyTree | None, where: str) -> PyTree[Array]:
    """One diagonal from those of the groups that `optax.partition` and masks make.

    A mask stands for a leaf or, where the mask was a prefix of the params, for a whole branch.
    """
    present = [tree for tree in trees if not _is_masked(tree)]
    if not present and identity_like is not None:
        return jax.tree.map(jnp.ones_like, identity_like)
    if present and not jax.tree_util.all_leaves(present):
        branches = [_children(tree) for tree in present]
        others = [None] * len(branches[0][1])
        if identity_like is not None:
            others = _children(identity_like)[1]
        merged = [
            _merged(list(group), other, where + jax.tree_util.keystr((name,)))
            for name, *group, other in zip(
                branches[0][0], *[children for _, children, _ in branches], others, strict=True
            )
        ]
        return jax.tree.unflatten(branches[0][2], merged)
    if len(present) != 1:
        raise ValueError(
            f"{len(present)} second moments belong to parameter {where or 'params'} in the "
            "optimiser's state, and one is needed: compute the diagonal yourself, or, where some "
            "parameters have none, pass identity_like=params."
        )
    return present[0]


def _children(tree: PyTree) -> tuple[list[Any], list[PyTree], Any]:
    """Names, children and structure of a tree's root."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    return [path[0] for path, _ in pairs], [child for _, child in pairs], structure
