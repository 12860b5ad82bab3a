"""What must hold while a lane's program is traced, said before XLA says it worse."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from driftlab.dynamics import Snapshot, State
from driftlab.measures import Measure
from driftlab.measures.recording import measure_name


def check_next(state: State, snapshot: Snapshot) -> None:
    """Raises where a step would not fit a loop.

    Args:
      state: the state before the step.
      snapshot: what the step saw, with the state after it.

    Raises:
      ValueError: if the step changes the key, or the structure, shapes or types of its state.
    """
    following = snapshot.next_state
    if following.key is not state.key:
        raise ValueError(
            "a Dynamics' step must return state.key itself (it is the run's key, shared by its "
            "steps), not a copy that jax.jit or a loop passed through; draw with "
            "jax.random.fold_in(state.key, state.step)."
        )
    before, after = (state.params, state.inner), (following.params, following.inner)
    _check_kept(before, after, "a Dynamics' step must keep the {} of its state", "(params, inner)")


def check_memory(
    measures: Sequence[Measure], before: Sequence[PyTree], after: Sequence[PyTree]
) -> None:
    """Raises where what a measure remembers would not fit a loop.

    Args:
      measures: the measures.
      before: what each remembered.
      after: what each remembers now.

    Raises:
      ValueError: if a measure changes the structure, shapes or types of its memory.
    """
    for measure, old, new in zip(measures, before, after, strict=True):
        name = measure_name(measure)
        _check_kept(old, new, f"the measure {name} must keep the {{}} of its memory", "memory")


def _check_kept(before: PyTree, after: PyTree, message: str, name: str) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"{message.format('structure')}; it went from "
            f"{jax.tree.structure(before)} to {jax.tree.structure(after)}."
        )
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if jnp.shape(old) != jnp.shape(new) or jnp.result_type(old) != jnp.result_type(new):
            raise ValueError(
                f"{message.format('type')}; {name}"
                f"{jax.tree_util.keystr(path)} went from {jnp.result_type(old)}{jnp.shape(old)} "
                f"to {jnp.result_type(new)}{jnp.shape(new)}."
            )
