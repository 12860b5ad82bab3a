"""Central flows: the time-averaged path of an optimiser at the edge of stability.

Time counts iterations. The flow is a step method and no field for diffrax: its right-hand side
jumps where an eigenvalue reaches the edge, and the oscillation is chosen for the end of a substep.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from driftlab.curvature.factorizations import eigenvalues, eigh
from driftlab.curvature.lobpcg import initial_block, tracked_eigenpairs
from driftlab.curvature.vectors import check_count
from driftlab.dynamics import Dynamics, Snapshot, State, from_step
from driftlab.flows.complementarity import smat, solve_complementarity, svec
from driftlab.flows.preconditioning import Memory, Preconditioning
from driftlab.flows.vector_field import gradient_function
from driftlab.objective import Objective, Params

# Below this share of the edge no eigenvalue reaches it within a substep.
_NEAR = 0.75


class CentralState(NamedTuple):
    """The inner state of a central flow.

    Attributes:
      memory: m, the optimiser's.
      block: eigenvectors to start the next search from, `(k + 1, n)`.
      eigenvalues: of `P^{-1} H` at the start of the last step, descending, `(k,)`; the edge is 2.
      basis: U, the eigenvectors there, `(k, n)` with `U P U^T = I`; columns in the order of
        `ravel_pytree(params)`.
      covariance: X, the mean over the last step, so that the oscillation's covariance is
        `Sigma = U^T X U`; `(k, k)`, positive semidefinite, no unit.
      residual: the worst of the complementarity problems' residuals in the last step.
      eigen_residual: the worst relative residual of an eigenpair in the last step.
      products: Hessian-vector products so far.
    """

    memory: Memory
    block: Float[Array, "rows n"]
    eigenvalues: Float[Array, " k"]
    basis: Float[Array, "k n"]
    covariance: Float[Array, "k k"]
    residual: Float[Array, ""]
    eigen_residual: Float[Array, ""]
    products: Int[Array, ""]


def central_flow(
    objective: Objective,
    preconditioning: Preconditioning,
    *,
    eigenvectors: int = 3,
    substeps: int = 4,
    tolerance: float = 1e-3,
    max_iterations: int = 20,
    batch_size: int | None = None,
) -> Dynamics:
    """The dynamics of the central flow, one step of which is one iteration of the optimiser.

    `dw/dt = -P(m)^{-1} [g + grad_w <H(w), Sigma> / 2]`,
    `dm/dt = rate(m, g) + second derivative of rate in g along (H Sigma H) / 2`,
    with `Sigma >= 0` living where `P^{-1} H` has the eigenvalue 2, such that no eigenvalue passes
    2. In the k leading eigenvectors, `Sigma = U^T X U`, that is a semidefinite complementarity
    problem, solved for what holds at the end of a substep: `A + B[X] = U (2 P - H) U^T` there, so
    that errors do not add up. `H U^T = 2 P U^T` in the memory's rate, as it is where X lives.

    Start it where the sharpness is below the edge: an eigenvalue above it is brought to it within
    one substep. RMSProp's is above it for its first few steps; take those with the optimiser, and
    hand its state over (`preconditioning.from_optax(..., opt_state=...)`).

    Args:
      objective: what is minimised, over all its data whatever its sampling.
      preconditioning: the optimiser (see `driftlab.flows.preconditioning`).
      eigenvectors: k, how many are followed; more than are unstable at once.
      substeps: Euler steps an iteration.
      tolerance: on the eigenvectors' residuals, relative to the largest eigenvalue.
      max_iterations: of the eigensolver in a substep.
      batch_size: examples at once, to bound memory; None for all of them.

    Returns:
      The dynamics; its `State.inner` is a `CentralState`.

    Raises:
      ValueError: if a count is out of range, or, from `init`, more eigenvectors are asked for than
        there are parameters.
      TypeError: from `init`, if a parameter is not floating-point.

    Source: Cohen, Damian, Talwalkar, Kolter, Lee (2025), "Understanding optimization in deep
    learning with central flows"; the equations for gradient descent, (scalar) RMSProp and a general
    preconditioner, and their discretisation. Cost of a substep: one gradient, k + 1 Hessian-vector
    products and k more an iteration of the eigensolver, and j (j + 1) / 2 third derivatives of
    about three gradients each, j of the k eigenvalues being above 3/4 of the edge.
    """
    for name, value in {
        "eigenvectors": eigenvectors, "substeps": substeps, "max_iterations": max_iterations,
    }.items():  # fmt: skip
        check_count(name, value)
    gradient = gradient_function(objective, batch_size)

    def init(params: Params, key: PRNGKeyArray) -> State:
        params = jax.tree.map(jnp.asarray, params)
        flat, _ = ravel_pytree(params)
        check_count("eigenvectors", eigenvectors, flat.size)
        rows = min(eigenvectors + 1, flat.size)
        # A gradient first: with none of the parameters there would be no flow either.
        memory = preconditioning.init(params, gradient(params))
        zero = jnp.zeros((), flat.dtype)
        inner = CentralState(
            memory=memory,
            block=initial_block(flat.size, rows, flat.dtype),
            eigenvalues=jnp.full((eigenvectors,), jnp.nan, flat.dtype),
            basis=jnp.zeros((eigenvectors, flat.size), flat.dtype),
            covariance=jnp.zeros((eigenvectors, eigenvectors), flat.dtype),
            residual=zero,
            eigen_residual=zero,
            products=jnp.zeros((), jnp.int32),
        )
        return State(params, inner, jnp.zeros((), jnp.int32), key)

    def step(state: State) -> State:
        flat, unflatten = ravel_pytree(state.params)
        flat_memory, unflatten_memory = ravel_pytree(state.inner.memory)
        # An optimiser without memory has an empty one, of some default type.
        flat_memory = flat_memory.astype(flat.dtype)
        problem = flat_problem(preconditioning, gradient, unflatten, unflatten_memory, flat)
        inner = state.inner
        begin = (flat, flat_memory, inner.block, inner.covariance, inner.products)

        def substep(carry: tuple, _: None) -> tuple[tuple, tuple]:
            w, m, block, x, products = carry
            found = _substep(
                problem, w, m, block, x, 1 / substeps, eigenvectors, tolerance, max_iterations
            )
            carry = (found.w, found.m, found.block, found.x, products + found.products)
            return carry, (found.eigenvalues, found.basis, found.x, found.residuals)

        end, (values, bases, covariances, residuals) = jax.lax.scan(
            substep, begin, None, length=substeps
        )
        memory = unflatten_memory(end[1])
        return State(
            params=unflatten(end[0]),
            inner=CentralState(
                memory=memory,
                block=end[2],
                eigenvalues=values[0],
                basis=bases[0],
                covariance=covariances.mean(0),
                residual=residuals[:, 0].max(),
                eigen_residual=residuals[:, 1].max(),
                products=end[4],
            ),
            step=state.step + 1,
            key=state.key,
        )

    return from_step(init, step, objective)


def averages(snapshot: Snapshot) -> dict[str, Array]:
    """A measure of a central flow: what the optimiser does on average over its oscillation.

    - `central_loss`: `L + <H, Sigma> / 2`, which is `L + sum_i e_i X_ii / 2`, `L + tr X` at the
      edge: the time-averaged loss;
    - `central_gradient_norm_squared`: `|g|^2 + <H^2, Sigma>`;
    - `central_variance`: `u_i.Sigma.u_i` along the unit eigenvectors of Sigma, its eigenvalues
      (those that are not 0), descending, `(k,)`;
    - `central_eigenvalues`: of `P^{-1} H`, `(k,)`, to be compared with 2;
    - `central_residual`: of the complementarity problem.

    Args:
      snapshot: of a step of a central flow.

    Returns:
      Name -> array. NaN variance never appears: below the edge it is 0.

    Raises:
      TypeError: if the snapshot is not of a central flow.

    Source: Cohen et al. (2025), predictions of the central flow. Cost: k Hessian-vector products.
    """
    inner = snapshot.next_state.inner
    if not isinstance(inner, CentralState):
        raise TypeError(
            f"averages is a measure of driftlab.flows.central_flow; this run's state is a "
            f"{type(inner).__name__}."
        )
    flat, unflatten = ravel_pytree(snapshot.params)
    objective = snapshot.objective
    assert objective is not None  # central_flow has one
    gradient = gradient_function(objective)
    product = jax.linearize(lambda w: ravel_pytree(gradient(unflatten(w)))[0], flat)[1]
    images = jax.lax.map(product, inner.basis)
    curvature = images @ inner.basis.T
    slope = ravel_pytree(snapshot.gradient)[0]
    # Sigma's eigenvalues are those of X^1/2 (U U^T) X^1/2, of size k.
    values, vectors = eigh(inner.covariance)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]) @ vectors.T
    variance = eigenvalues(root @ (inner.basis @ inner.basis.T) @ root)[::-1]
    return {
        "central_loss": snapshot.value + (curvature * inner.covariance).sum() / 2,
        "central_gradient_norm_squared": slope @ slope
        + ((images @ images.T) * inner.covariance).sum(),
        "central_variance": jnp.maximum(variance, 0),
        "central_eigenvalues": inner.eigenvalues,
        "central_residual": inner.residual,
    }


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


class _Substep(NamedTuple):
    """What a substep comes to."""

    w: Float[Array, " n"]
    m: Float[Array, " q"]
    block: Float[Array, "rows n"]
    x: Float[Array, "k k"]
    eigenvalues: Float[Array, " k"]
    basis: Float[Array, "k n"]
    residuals: Float[Array, " 2"]
    products: Int[Array, ""]


def _substep(
    problem: FlatProblem,
    w: Float[Array, " n"],
    m: Float[Array, " q"],
    block: Float[Array, "rows n"],
    x: Float[Array, "k k"],
    dt: float,
    k: int,
    tolerance: float,
    max_iterations: int,
) -> _Substep:
    g, product = jax.linearize(problem.gradient, w)
    p = problem.diagonal(m)
    root = jax.lax.rsqrt(p)
    operator = lineax.FunctionLinearOperator(
        lambda v: root * product(root * v), jax.eval_shape(lambda: w), lineax.symmetric_tag
    )
    before = block
    pairs, block = tracked_eigenpairs(
        operator, block, k, tolerance=tolerance, max_iterations=max_iterations
    )
    basis = root[None, :] * pairs.vectors
    dw, dm = -g / p, problem.rate(m, g)

    def at_the_edge() -> tuple[Array, Array, Array, Array]:
        # The last X in these eigenvectors, which may have turned: where to look for this one.
        turn = pairs.vectors @ before[:k].T
        guess = turn @ x @ turn.T
        active = (pairs.values > 2 * _NEAR).sum()
        oscillation = oscillation_of(problem, w, m, p, basis, active)
        constant = jnp.diag(2 - pairs.values) + dt * smat(oscillation.change(dw, dm))
        found = solve_complementarity(constant, dt * oscillation.feedback, guess)
        weights = svec(found.solution)
        return (
            dw + weights @ oscillation.velocities,
            dm + weights @ oscillation.memory_rates,
            found.solution,
            found.residual,
        )

    def inside() -> tuple[Array, Array, Array, Array]:
        return dw, dm, jnp.zeros_like(x), jnp.zeros((), w.dtype)

    # NaN eigenvalues take the cheap branch, whose dw is NaN as well.
    dw, dm, x, residual = jax.lax.cond(pairs.values[0] > 2 * _NEAR, at_the_edge, inside)
    eigen_residual = pairs.residuals.max() / abs(pairs.values).max()
    return _Substep(
        w=w + dt * dw,
        m=m + dt * dm,
        block=block,
        x=x,
        eigenvalues=pairs.values,
        basis=basis,
        residuals=jnp.stack([residual, eigen_residual]),
        products=pairs.products,
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
        return jax.jvp(problem.diagonal, (m,), (dm,))[1]

    def change(dw: Array, dm: Array) -> Array:
        return 2 * squares @ diagonal_change(dm) - thirds @ dw

    feedback = -thirds @ velocities.T
    memory_rates = jnp.zeros((len(rows), m.size), w.dtype)
    if m.size:
        memory_rates = jax.vmap(bent)(images[rows], images[columns])
        memory_rates = weight * jnp.where(live[:, None], memory_rates, 0)
        feedback = feedback + 2 * squares @ jax.vmap(diagonal_change)(memory_rates).T
    return Oscillation(change, feedback, velocities, memory_rates)
