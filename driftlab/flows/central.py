"""Central flows: the time-averaged path of an optimiser at the edge of stability.

Time counts iterations. The flow is a step method and no field for diffrax: its right-hand side
jumps where an eigenvalue reaches the edge, and the oscillation is chosen for the end of a substep.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from driftlab.curvature.lobpcg import initial_block, tracked_eigenpairs
from driftlab.curvature.vectors import check_count
from driftlab.dynamics import Dynamics, State, from_step
from driftlab.flows.complementarity import solve_complementarity
from driftlab.flows.oscillation import FlatProblem, flat_problem, oscillation_of
from driftlab.flows.preconditioning import Memory, Preconditioning
from driftlab.flows.symmetric_coordinates import smat, svec
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
