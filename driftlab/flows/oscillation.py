"""What oscillations along some directions do to an optimiser's averages: the central flows' terms.

Everything is on flat vectors; pairs of directions are entries of `svec`, time counts iterations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from driftlab.flows.preconditioning import Memory, Preconditioning
from driftlab.objective import Params


class FlatProblem(NamedTuple):
    """The optimiser on flat vectors."""

    gradient: Callable[[Array], Array]
    rate: Callable[[Array, Array], Array]
    diagonal: Callable[[Array], Array]


def flat_problem(
    preconditioning: Preconditioning,
    gradient: Callable[[Params], Params],
    unflatten: Callable[[Array], Params],
    unflatten_memory: Callable[[Array], Memory],
    like: Float[Array, " n"],
) -> FlatProblem:
    """The optimiser on flat vectors, in the type of the flat parameters.

    Args:
      preconditioning: the optimiser.
      gradient: of what is minimised, on trees.
      unflatten: parameters from a vector.
      unflatten_memory: the memory from a vector.
      like: the flat parameters.

    Returns:
      It.
    """

    def ravel(tree: PyTree) -> Array:
        return ravel_pytree(tree)[0].astype(like.dtype)

    def diagonal(m: Array) -> Array:
        vector = ravel(preconditioning.diagonal(unflatten_memory(m)))
        if vector.size not in (1, like.size):
            raise ValueError(
                "preconditioning.diagonal must return a number or one entry a parameter, "
                f"{like.size}; got {vector.size}."
            )
        return jnp.broadcast_to(vector, like.shape)

    return FlatProblem(
        lambda w: ravel(gradient(unflatten(w))),
        lambda m, g: ravel(preconditioning.rate(unflatten_memory(m), unflatten(g))),
        diagonal,
    )


class Oscillation(NamedTuple):
    """What an oscillation `Sigma = U^T X U` does, by entries of svec(X).

    Attributes:
      change: `(dw, dm) -> svec(d/dt U (2 P - H) U^T)`, U held fixed.
      feedback: B: the same for dw, dm that X makes; symmetric, positive semidefinite.
      velocities: dw by each entry.
      memory_rates: dm by each entry.
    """

    change: Callable[[Array, Array], Float[Array, " s"]]
    feedback: Float[Array, "s s"]
    velocities: Float[Array, "s n"]
    memory_rates: Float[Array, "s q"]


def oscillation_of(
    problem: FlatProblem,
    w: Float[Array, " n"],
    m: Float[Array, " q"],
    p: Float[Array, " n"],
    basis: Float[Array, "k n"],
    active: Int[Array, ""] | int,
) -> Oscillation:
    """What oscillations along some directions do to the averages of everything.

    Args:
      problem: the optimiser.
      w: parameters.
      m: memory.
      p: P there.
      basis: the directions, U.
      active: how many of them, the first ones, can oscillate: pairs beyond are 0.

    Returns:
      It, for `Sigma = U^T X U`.
    """
    k = basis.shape[0]
    rows, columns = np.triu_indices(k)
    # Pairs of the first one come first, then those of the first two, ...
    order = jnp.asarray(np.lexsort((rows, columns)))
    weight = jnp.asarray(np.where(rows == columns, 1.0, 2**0.5), w.dtype)[:, None]
    first, second = basis[rows], basis[columns]

    def third(count: Array, found: Array) -> Array:
        pair = order[count]

        def curved(w: Array) -> Array:
            return jax.jvp(problem.gradient, (w,), (first[pair],))[1]

        return found.at[pair].set(jax.jvp(curved, (w,), (second[pair],))[1])

    # grad_w u.H(w).v for each pair: the change of U H U^T along any dw.
    pairs = jnp.asarray(active * (active + 1) // 2)
    thirds = weight * jax.lax.fori_loop(0, pairs, third, jnp.zeros((len(rows), w.size), w.dtype))
    live = jnp.asarray(np.maximum(rows, columns)) < active
    squares = weight * jnp.where(live[:, None], first * second, 0)
    velocities = -thirds / (2 * p)[None, :]

    g = problem.gradient(w)
    images = 2 * p[None, :] * basis

    def bent(u: Array, v: Array) -> Array:
        def sloped(g: Array) -> Array:
            return jax.jvp(lambda g: problem.rate(m, g), (g,), (u,))[1]

        return jax.jvp(sloped, (g,), (v,))[1] / 2

    def diagonal_change(dm: Array) -> Array:
        slope = jax.jvp(problem.diagonal, (m,), (dm,))[1]
        # sqrt(nu) has none at 0: a parameter without a gradient, such as a weight on a pixel that
        # is black in all images. Its P stays, and no eigenvector has a part of it.
        return jnp.where(jnp.isfinite(p) & ~jnp.isfinite(slope), 0, slope)

    def change(dw: Array, dm: Array) -> Array:
        return 2 * squares @ diagonal_change(dm) - thirds @ dw

    feedback = -thirds @ velocities.T
    memory_rates = jnp.zeros((len(rows), m.size), w.dtype)
    if m.size:
        memory_rates = jax.vmap(bent)(images[rows], images[columns])
        memory_rates = weight * jnp.where(live[:, None], memory_rates, 0)
        feedback = feedback + 2 * squares @ jax.vmap(diagonal_change)(memory_rates).T
    return Oscillation(change, feedback, velocities, memory_rates)
