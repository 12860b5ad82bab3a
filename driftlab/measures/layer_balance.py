"""Balancedness of linear networks: what gradient flow conserves and an optimiser does not."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.dynamics import Snapshot
from driftlab.hyperparameters import check_range
from driftlab.measures.layer_matrices import network_matrices
from driftlab.measures.norms import effective_learning_rate
from driftlab.measures.recording import Tracker
from driftlab.objective import Params

# One symmetric matrix for each pair of neighbouring layers, of the width between them.
Balance = tuple[Float[Array, "width width"], ...]


def balancedness(params: Params, transposed: bool | None = None) -> Balance:
    """`B_k = W_{k+1}^T W_{k+1} - W_k W_k^T` for k = 1 .. L-1, 0 of a balanced network.

    Gradient flow of any differentiable loss of the product `W_L ... W_1` conserves every B_k.

    Args:
      params: the network's matrices, as `network_matrices` reads them: a list or tuple in network
        order, a dict of numbered names, or the params of a flax network of bias-free dense layers,
        whose kernels are the transposes `W_k^T`.
      transposed: as in `network_matrices`.

    Returns:
      One matrix for each pair of neighbours, parameter^2 units.

    Raises:
      ValueError: with fewer than two layers; as `network_matrices`.

    Source: Arora, Cohen & Hazan (2018); Du, Hu & Lee (2018); Ji & Telgarsky (2019), section 2.
    """
    return balancedness_source(params, transposed)


def balancedness_source(gradient: Params, transposed: bool | None = None) -> Balance:
    """`D_k = G_{k+1}^T G_{k+1} - G_k G_k^T`: what makes B_k drift.

    With G the gradient of the batch's loss and h the learning rate, one step of gradient descent
    changes B_k by exactly `h^2 D_k`, whatever the batch, since `W_{k+1}^T G_{k+1} = G_k W_k^T`.
    Along its modified flow `W' = -G - (h/2) H G` (implicit gradient regularisation)
    `dB_k/dt = h D_k` exactly. So over a time T it drifts by `h I_k + O(h^2)`,
    `I_k = int_0^T D_k dt` along gradient flow.

    Args:
      gradient: in the structure of the params.
      transposed: as in `network_matrices`.

    Returns:
      One matrix for each pair of neighbours.

    Raises:
      ValueError: as `balancedness`.
    """
    matrices = list(network_matrices(gradient, transposed).values())
    if len(matrices) < 2:
        raise ValueError("balancedness compares neighbouring layers: it needs two or more.")
    return tuple(upper.T @ upper - lower @ lower.T for lower, upper in itertools.pairwise(matrices))


def balancedness_change(params: Params, updates: Params, transposed: bool | None = None) -> Balance:
    """What one update of any optimiser does to B_k, exactly.

    `dB_k = sym(W_{k+1}^T U_{k+1}) - sym(U_k W_k^T) + U_{k+1}^T U_{k+1} - U_k U_k^T` with
    `sym(A) = A + A^T`. For a velocity U of a flow the first two terms are `dB_k/dt`
    (`balancedness_velocity`).

    Args:
      params: W, before it.
      updates: U, what is added.
      transposed: as in `network_matrices`.

    Returns:
      One matrix for each pair of neighbours.

    Raises:
      ValueError: as `balancedness`.
    """
    return jax.tree.map(
        jnp.add,
        balancedness_velocity(params, updates, transposed),
        balancedness_source(updates, transposed),
    )


def balancedness_velocity(
    params: Params, velocity: Params, transposed: bool | None = None
) -> Balance:
    """`dB_k/dt = sym(W_{k+1}^T V_{k+1}) - sym(V_k W_k^T)` along a flow `W' = V`.

    0 for gradient flow, `h D_k` for gradient descent's modified flow, `-2 lambda B_k` for gradient
    flow with a weight decay `lambda`.

    Args:
      params: W.
      velocity: V.
      transposed: as in `network_matrices`.

    Returns:
      One matrix for each pair of neighbours.

    Raises:
      ValueError: as `balancedness`.
    """
    _, change = jax.jvp(
        functools.partial(balancedness, transposed=transposed), (params,), (velocity,)
    )
    return change


def momentum_balancedness_factor(momentum: ArrayLike, nesterov: bool = False) -> Any:
    """How many times faster B drifts with momentum than without, at equal effective learning rate.

    Momentum m at learning rate h follows `W' = -G - h_e c H G` in the time n h_e,
    `h_e = h / (1 - m)`, up to O(h^2) once its memory has filled; so `dB_k/dt = 2 c h_e D_k`, and

        2 c = (1 + m) / (1 - m)    heavy ball,    (1 - m + 2 m^2) / (1 - m)    Nesterov

    as `optax.sgd` has them. The initial layer moves the start along G, which changes B at O(h^2)
    only. Derived here: the trace over its gain is `G + h_e m / (1 - m) H G + O(h^2)`, which enters
    `balancedness_change` through `W_{k+1}^T (H G)_{k+1} - (H G)_k W_k^T = -D_k`; the same c as that
    of the modified loss in `driftlab.flows.modified_loss_coefficient`.

    Args:
      momentum: m, in [0, 1); a scalar.
      nesterov: as in `optax.sgd`.

    Returns:
      The factor, 1 for m = 0: the drift over an effective time T is `factor * h_e I_k + O(h^2)`.

    Raises:
      ValueError: for a known momentum outside [0, 1).
    """
    check_range("momentum", momentum, "at least 0 and below 1", lambda value: 0 <= value < 1)
    above = 1 - momentum + 2 * momentum**2 if nesterov else 1 + momentum
    return above / (1 - momentum)


def balancedness_drift(transposed: bool | None = None) -> Tracker:
    """A measure of how far B has drifted from its start, and of gradient descent's prediction.

    The prediction is the sum of `h^2 D_k` over all steps, which for gradient descent is the drift
    itself. h is the effective learning rate of the step, `|update| / |gradient|`; steps between two
    records count by the trapezoidal rule, so that at `record_every=1` the prediction is exact.

    Args:
      transposed: as in `network_matrices`.

    Returns:
      A tracker of `balancedness_drift`, `|B(t) - B(0)|`, `balancedness_predicted`, `|sum h^2 D|`,
      and `balancedness_error`, the norm of their difference: Frobenius norms over all pairs of
      neighbours, parameter^2 units. It raises a ValueError as `balancedness` does.

    Cost: `width^2 (inputs + outputs)` a pair of layers and record.
    """

    def init(params: Params) -> dict[str, PyTree[Array]]:
        start = balancedness(params, transposed)
        nothing = jax.tree.map(jnp.zeros_like, start)
        step = jnp.full((), -1, jnp.int32)
        return {"start": start, "predicted": nothing, "last": nothing, "step": step}

    def update(
        snapshot: Snapshot, memory: dict[str, PyTree[Array]]
    ) -> tuple[dict[str, Array], dict[str, PyTree[Array]]]:
        rate, step = effective_learning_rate(snapshot), snapshot.state.step
        now = jax.tree.map(
            lambda source: rate**2 * source, balancedness_source(snapshot.gradient, transposed)
        )
        count = jnp.where(memory["step"] < 0, 0, step - memory["step"])

        def add(total: Array, before: Array, after: Array) -> Array:
            # The sum over steps from one record up to the next, without that one.
            steps = count.astype(total.dtype)
            between = steps * (before + after) / 2 + (before - after) / 2
            return total + jnp.where(count > 0, between, 0)

        predicted = jax.tree.map(add, memory["predicted"], memory["last"], now)
        drift = jax.tree.map(
            jnp.subtract, balancedness(snapshot.params, transposed), memory["start"]
        )
        error = jax.tree.map(jnp.subtract, drift, predicted)
        values = {
            "balancedness_drift": optax.tree.norm(drift),
            "balancedness_predicted": optax.tree.norm(predicted),
            "balancedness_error": optax.tree.norm(error),
        }
        return values, {**memory, "predicted": predicted, "last": now, "step": step}

    return Tracker("balancedness_drift", init, update)
