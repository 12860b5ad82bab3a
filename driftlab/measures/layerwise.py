"""The layer-wise version of any measure."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from driftlab.dynamics import Dynamics, Snapshot, State
from driftlab.measures.recording import Measure, Tracker, Values, measure_name
from driftlab.objective import Batch, Loss, Objective, Params


def layerwise(measure: Measure, layers: Sequence[str] | None = None) -> Measure:
    """The measure of every layer by itself: its gradient norm, its diagonal block's sharpness, ...

    For each layer the measure sees a snapshot whose parameters are that layer's alone: params,
    gradient, theta_{k+1}, theta_0, and whatever in the optimiser's state has the parameters'
    structure (momentum, second moments). The leaves of other layers are None in them, so a tree
    keeps its shape. The objective there is a function of the layer's parameters, the other layers
    held at theta_k; so a curvature measure sees the layer's diagonal block of the Hessian. Values
    of the step as a whole (`value`, `loss`, `batch`) stay. Looking a step ahead
    (`snapshot.dynamics.observe(snapshot.next_state)`) lets all layers move, and shows the layer's
    part of it; the others then are held at theta_{k+1}.

    Cost: the measure's, times layers (a gradient in one layer's parameters still takes the whole
    forward pass, and the backward pass down to that layer). Each layer is its own copy of the
    measure in the compiled program.

    Args:
      measure: any measure; a `Tracker` remembers for each layer by itself. Its interval is kept.
      layers: names of the layers to measure, as `layer_names` gives them; None for all.

    Returns:
      A measure giving `<name>_<layer>` for each name that `measure` gives; a `Tracker` if it is
      one. It raises a ValueError, naming those there are, on a layer that the params don't have.

    Raises:
      ValueError: if `layers` is empty or a single string.
    """
    if isinstance(layers, str) or (layers is not None and not layers):
        raise ValueError(f"layers must be a sequence of layers' names, or None; got {layers!r}.")
    name = f"layerwise_{measure_name(measure)}"

    def named(values: Values, layer: str) -> dict[str, Array]:
        if not isinstance(values, Mapping):
            values = {measure_name(measure): values}
        return {f"{name}_{layer}": value for name, value in values.items()}

    if isinstance(measure, Tracker):
        tracker = measure

        def init(params: Params) -> dict[str, PyTree[Array]]:
            return {
                layer: tracker.init(_Layer(params, leaves).part(params))
                for layer, leaves in _selected(params, layers).items()
            }

        def update(
            snapshot: Snapshot, memory: dict[str, PyTree[Array]]
        ) -> tuple[dict[str, Array], dict[str, PyTree[Array]]]:
            values, remembered = {}, {}
            for layer, leaves in _selected(snapshot.params, layers).items():
                part = _Layer(snapshot.params, leaves).snapshot(snapshot)
                result, remembered[layer] = tracker.update(part, memory[layer])
                values |= named(result, layer)
            return values, remembered

        return Tracker(name, init, update, tracker.interval)

    def each(snapshot: Snapshot) -> dict[str, Array]:
        values = {}
        for layer, leaves in _selected(snapshot.params, layers).items():
            part = _Layer(snapshot.params, leaves).snapshot(snapshot)
            values |= named(measure(part), layer)
        return values

    each.__name__ = name
    each.__doc__ = measure.__doc__
    each.interval = getattr(measure, "interval", 1)  # type: ignore[attr-defined]
    return each


def layer_names(params: Params) -> dict[str, tuple[int, ...]]:
    """The layers of a parameter tree: the leaves that share a container.

    `{"params": {"Dense_0": {"kernel", "bias"}, ...}}` has the layers `Dense_0`, ...; a leaf at the
    root is a layer by itself. Names are paths joined by "_", without the containers that hold
    everything (`params`), other characters than letters and digits replaced by "_".

    Args:
      params: any pytree of arrays.

    Returns:
      Layer's name -> the positions of its leaves in `jax.tree.leaves(params)`.

    Raises:
      ValueError: if two layers would get the same name.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    for index, path in enumerate(leaf_paths(params)):
        found.setdefault(path[:-1] or path, []).append(index)
    names = {path: "_".join(path) or "params" for path in found}
    repeated = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if repeated:
        raise ValueError(
            f"more than one layer would be called {repeated}; rename the parameters' containers."
        )
    return {names[path]: tuple(leaves) for path, leaves in found.items()}


def leaf_paths(params: Params) -> list[tuple[str, ...]]:
    """Where each leaf of a parameter tree is, without the containers that hold everything.

    Args:
      params: any pytree of arrays.

    Returns:
      One path a leaf, in the order of `jax.tree.leaves`; its parts are letters, digits and "_".
    """
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # nnx wraps each array in a variable, which is no layer.
    if all(path and path[-1] == jax.tree_util.GetAttrKey("value") for path in keys):
        keys = [path[:-1] for path in keys]
    paths = [tuple(_part(key) for key in path) for path in keys]
    # A leaf or its own container is never dropped: they name the layer.
    while max(map(len, paths)) > 2 and len({path[:1] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return paths


class _Layer:
    """One layer of a parameter tree: takes it out of trees, and puts it back.

    Args:
      params: the tree.
      leaves: positions of the layer's leaves in it.
    """

    def __init__(self, params: Params, leaves: tuple[int, ...]):
        self.structure = jax.tree.structure(params)
        self.shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        self.leaves = leaves

    def part(self, tree: Params) -> Params:
        """The tree with None for the leaves of other layers."""
        kept = [
            leaf if index in self.leaves else None
            for index, leaf in enumerate(self.structure.flatten_up_to(tree))
        ]
        return self.structure.unflatten(kept)

    def put_back(self, part: Params, whole: Params) -> Params:
        """The whole tree with the layer's leaves from `part`."""
        leaves = jax.tree.leaves(whole)
        for index, leaf in zip(self.leaves, jax.tree.leaves(part), strict=True):
            leaves[index] = leaf
        return self.structure.unflatten(leaves)

    def state(self, state: State) -> State:
        """The state with the part of the params, and of all in `inner` that is shaped like them."""

        def is_like_params(node: Any) -> bool:
            return jax.tree.structure(node) == self.structure and self.shapes == [
                jnp.shape(leaf) for leaf in jax.tree.leaves(node)
            ]

        inner = jax.tree.map(
            lambda node: self.part(node) if is_like_params(node) else node,
            state.inner,
            is_leaf=is_like_params,
        )
        return state._replace(params=self.part(state.params), inner=inner)

    def snapshot(
        self, snapshot: Snapshot, known: list[tuple[State, State]] | None = None
    ) -> Snapshot:
        """What the step saw of this layer.

        Args:
          snapshot: what it saw.
          known: the parts of states handed out so far, with the wholes; grows.

        Returns:
          A snapshot of the layer's parameters.
        """
        known = [] if known is None else known
        objective, dynamics = snapshot.objective, snapshot.dynamics
        initial = snapshot.initial_params
        state, next_state = self.state(snapshot.state), self.state(snapshot.next_state)
        known += [(state, snapshot.state), (next_state, snapshot.next_state)]
        return snapshot._replace(
            state=state,
            next_state=next_state,
            objective=None if objective is None else self._objective(objective, snapshot.params),
            gradient=self.part(snapshot.gradient),
            eval_params=self.part(snapshot.eval_params),
            dynamics=None if dynamics is None else self._dynamics(dynamics, known),
            initial_params=None if initial is None else self.part(initial),
        )

    def _objective(self, objective: Objective, whole: Params) -> Objective:
        def of_layer(function: Loss) -> Loss:
            def evaluate(part: Params, batch: Batch) -> Array:
                return function(self.put_back(part, whole), batch)

            return evaluate

        regularizer = objective.regularizer
        return dataclasses.replace(
            objective,
            loss=of_layer(objective.loss),
            metrics={name: of_layer(metric) for name, metric in objective.metrics.items()},
            regularizer=None if regularizer is None else of_layer(regularizer),
        )

    def _dynamics(self, dynamics: Dynamics, known: list[tuple[State, State]]) -> Dynamics:
        def observe(state: State) -> Snapshot:
            for part, whole in known:
                if part is state:
                    return self.snapshot(dynamics.observe(whole), known)
            raise ValueError(
                "inside layerwise, dynamics can go on from snapshot.state or snapshot.next_state "
                "themselves only: the other layers' part of any other state is unknown."
            )

        def init(*_: Any) -> State:
            raise ValueError("inside layerwise, dynamics cannot start from one layer's params.")

        return Dynamics(init, lambda state: observe(state).next_state, observe)


def _selected(params: Params, layers: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    found = layer_names(params)
    if layers is None:
        return found
    unknown = [layer for layer in layers if layer not in found]
    if unknown:
        raise ValueError(f"layers={unknown}: there are {list(found)}.")
    return {layer: found[layer] for layer in layers}


def _part(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return re.sub(r"\W", "_", str(getattr(key, attribute)))
    return re.sub(r"\W", "_", str(key))
