"""Which memory of an optimiser stays in the ODE and which is eliminated."""

from collections.abc import Sequence

from driftlab.flows.optimizer_memory import Chain
from driftlab.flows.optimizer_probe import KEPT, Probe

# Memory with 1 - decay up to this is slow: it stays.
SLOW = 0.3


def choose_dynamic(chain: Chain, found: Probe, named: Sequence[str] | None) -> tuple[str, ...]:
    """The memory that stays dynamic: what is named, or what was measured to be slow.

    Args:
      chain: the optimiser.
      found: its measured decays.
      named: parts of names, such as `"nu"` for `"[0].nu['w']"`; None for all memory with
        `1 - decay <= 0.3`.

    Returns:
      Names of memory.

    Raises:
      ValueError: if nothing has such a name; or a decay that would decide is traced.
    """
    candidates = [name for level in chain.levels for name in level]
    if named is not None:
        for part in named:
            if not any(part in name for name in candidates):
                raise ValueError(
                    f"dynamic={list(named)}: no memory has {part!r} in its name; there are "
                    f"{candidates}."
                )
        return tuple(name for name in candidates if any(part in name for part in named))
    unknown = [name for name in candidates if found.decays[name] is None]
    if unknown:
        raise ValueError(
            f"memory='auto' chooses by measured decay, but that of {unknown[0]} depends on a "
            "traced hyper-parameter. Name what stays: memory='augment', dynamic=['nu'], or take "
            "memory='joint'."
        )
    return tuple(name for name in candidates if 1 - (found.decays[name] or 0.0) <= SLOW)


def check_eliminated(chain: Chain, found: Probe, dynamic: Sequence[str]) -> None:
    """Raises where memory that is to be eliminated has no slow manifold.

    Args:
      chain: the optimiser.
      found: what was measured.
      dynamic: names of the memory that stays.

    Raises:
      ValueError: naming the memory and the mode that serves.
    """
    eliminated = [n for level in chain.levels for n in level if n not in dynamic]
    for name in eliminated:
        decay = found.decays[name]
        if decay is not None and not 1 - decay >= KEPT:
            raise ValueError(
                f"state leaf {name} does not forget (decay {decay:.9g} a step), so it has no "
                "fixed point to be eliminated on. memory='joint' keeps it in the ODE."
            )
        if name in found.vanishing:
            raise ValueError(
                f"the updates divide by something that vanishes while the gradient stands still: "
                f"there, a hundredth of state leaf {name} changes them by half, so there is no "
                "slow manifold. memory='joint' keeps it in the ODE."
            )
    for clock in found.scheduling:
        if not any(name in dynamic for name in chain.corrected[clock]):
            raise ValueError(
                f"state leaf {clock} counts beside memory, but does more than correct its bias: "
                "the updates still change with it when every bias is corrected, so that it cannot "
                "stand at infinity. Keep a schedule in a state of its own "
                "(optax.scale_by_schedule), or take memory='joint', which runs all clocks."
            )
    if eliminated and found.newton is None:
        raise ValueError(
            f"no frozen fixed point of {eliminated} was found by Newton's method. memory='joint' "
            "needs none."
        )
