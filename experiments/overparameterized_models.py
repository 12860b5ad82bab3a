"""The two-layer ReLU network on inputs of norm 1, its trainings, and the linearised network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import models
from driftlab.curvature.two_layer_relu_kernel import relu_gram, smallest_eigenvalue
from driftlab.data.dataset import Batch
from driftlab.dynamics import Snapshot, State
from driftlab.flows.gradient import gradient_flow
from experiments.overparameterized_data import Kernel, Setting

# name -> (both layers are trained, gradient flow rather than descent)
TRAININGS = {"descent": (False, False), "flow": (False, True), "both_layers": (True, False)}


class Linearized(NamedTuple):
    """The inner state of `beside_linearization`.

    Attributes:
      inner: that of the network's dynamics.
      coefficients: the linearised network's residual in the kernel's eigenvectors, `(n,)`.
    """

    inner: Any
    coefficients: Float[Array, " n"]


def outputs(params: dict[str, Array], inputs: Any) -> Float[Array, " n"]:
    """The network, `1 / sqrt(m) sum_r a_r relu(w_r . x)`; `models.TwoLayerReLU` where a is fixed.

    Args:
      params: `kernel` `(d, m)`; and `output` `(m,)`, where the output layer is trained.
      inputs: `(n, d)`.

    Returns:
      One output an example.
    """
    kernel = params["kernel"]
    width = kernel.shape[1]
    output = params["output"] if "output" in params else signs(width, kernel.dtype)
    return jax.nn.relu(inputs @ kernel) @ output / width**0.5


def signs(width: int, dtype: Any) -> Float[Array, " m"]:
    """The output weights at initialisation, the same for all seeds."""
    return jnp.asarray(models.output_signs(width, 1, 0)[:, 0], dtype)


def initialize(
    key: PRNGKeyArray, dimension: int, width: int, both_layers: bool
) -> dict[str, Array]:
    """Standard normal hidden weights, and signs.

    Args:
      key: randomness.
      dimension: d.
      width: m.
      both_layers: whether the signs are params.

    Returns:
      The params that `outputs` takes.
    """
    params = {"kernel": jax.random.normal(key, (dimension, width), float)}
    return params | ({"output": signs(width, float)} if both_layers else {})


def make_objective(setting: Setting, labels: str) -> driftlab.Objective:
    """Half the sum of squared errors, as in the theory: no mean.

    Args:
      setting: the data.
      labels: which targets.

    Returns:
      The objective, in full batches.
    """

    def loss(params: dict[str, Array], batch: Batch) -> Float[Array, ""]:
        return jnp.sum(jnp.square(outputs(params, batch.inputs) - batch.targets)) / 2

    inputs, targets = (jnp.asarray(a, float) for a in (setting.inputs, setting.targets[labels]))
    return driftlab.Objective(loss, Batch(inputs, targets))


def make_training(
    name: str, objective: driftlab.Objective, learning_rate: Any, kernel: Kernel, rtol: float
) -> driftlab.Dynamics:
    """Gradient descent or gradient flow, with the linearised network beside it.

    Args:
      name: of the training.
      objective: what is minimised.
      learning_rate: h; may be traced. The flow's time of a step too.
      kernel: the limit kernel of what is trained.
      rtol: of the flow's solver.

    Returns:
      The dynamics; its inner state is a `Linearized`.
    """
    is_flow = TRAININGS[name][1]
    values = jnp.asarray(kernel.values, float)
    scaled = learning_rate * values
    if is_flow:
        field = gradient_flow(objective)
        dynamics = driftlab.flow(field, learning_rate, objective, rtol=rtol, atol=1e-6)
        return beside_linearization(dynamics, objective, kernel, jnp.exp(-scaled))
    dynamics = driftlab.descent(optax.sgd(learning_rate), objective)
    return beside_linearization(dynamics, objective, kernel, 1 - scaled)


def beside_linearization(
    dynamics: driftlab.Dynamics,
    objective: driftlab.Objective,
    kernel: Kernel,
    factors: Float[Array, " n"],
) -> driftlab.Dynamics:
    """A dynamics of the network that carries the linearised network's residual along.

    Args:
      dynamics: of the network.
      objective: of its data.
      kernel: the limit kernel.
      factors: what a step multiplies each eigendirection of the residual by.

    Returns:
      The dynamics; both start from the network's own residual.
    """
    vectors = jnp.asarray(kernel.vectors, float)
    examples: Any = objective.data

    def init(params: Any, key: PRNGKeyArray) -> State:
        state = dynamics.init(params, key)
        residual = outputs(state.params, examples.inputs) - examples.targets
        return state._replace(inner=Linearized(state.inner, vectors.T @ residual))

    def observe(state: State) -> Snapshot:
        snapshot = dynamics.observe(state._replace(inner=state.inner.inner))
        inner = Linearized(snapshot.next_state.inner, factors * state.inner.coefficients)
        following = snapshot.next_state._replace(inner=inner)
        return snapshot._replace(state=state, next_state=following, dynamics=combined)

    combined = driftlab.Dynamics(init, lambda state: observe(state).next_state, observe)
    return combined


def residuals(setting: Setting) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure of the residual, the linearised network's, and how far apart they are.

    Args:
      setting: the data.

    Returns:
      A measure of `squared_residual` `|u_k - y|^2`, `linearized_residual`, the same of the
      linearised network, and `linearized_error`, the distance between the two residuals.
    """

    def residuals(snapshot: Snapshot) -> dict[str, Array]:
        batch: Any = snapshot.batch
        residual = outputs(snapshot.params, batch.inputs) - batch.targets
        coefficients = snapshot.state.inner.coefficients
        vectors = jnp.asarray(setting.kernels["output" in snapshot.params].vectors, float)
        return {
            "squared_residual": jnp.sum(jnp.square(residual)),
            "linearized_residual": jnp.sum(jnp.square(coefficients)),
            "linearized_error": jnp.linalg.norm(vectors @ coefficients - residual),
        }

    return residuals


def kernel_along_training(setting: Setting) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure of the kernel H(k), or H(k) + G(k) where both layers are trained.

    Args:
      setting: the data.

    Returns:
      A measure of `least_eigenvalue`, and `kernel_error`, its distance from the limit relative to
      the limit, in Frobenius norm.
    """

    def kernel_along_training(snapshot: Snapshot) -> dict[str, Array]:
        both = "output" in snapshot.params
        limit = jnp.asarray(setting.kernels[both].gram, float)
        gram = relu_gram(
            jnp.asarray(setting.inputs, float),
            snapshot.params["kernel"],
            snapshot.params.get("output"),
            both_layers=both,
        )
        return {
            "least_eigenvalue": smallest_eigenvalue(gram),
            "kernel_error": jnp.linalg.norm(gram - limit) / jnp.linalg.norm(limit),
        }

    return kernel_along_training
