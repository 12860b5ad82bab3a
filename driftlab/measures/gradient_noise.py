"""How noisy the gradient is: its covariance over examples, the noise scale, signal to noise.

Unless a name says otherwise, a measure here is exact: per-example gradients of what is minimised,
over all the training data, at theta_k. "Covariance" is that of the gradient of one example drawn
uniformly from the training data (the population form, divided by n), so that a batch of B drawn
with replacement has exactly the covariance `Sigma / B`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from driftlab.curvature.per_example import GradientMoments, gradient_moments
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.objective import Objective, Params
from driftlab.sampling import check_batch_size


def gradient_noise(batch_size: int | None = None) -> Measure:
    """A measure of all that one pass over the per-example gradients gives.

    With `G = mean_i g_i` and `Sigma = Cov g_i`. Cost: two gradients over the training data, and
    n per-example ones, by vmap. On a 784-256-256-10 network, 512 examples and a CPU that is 10
    gradients' time for the norms, the trace and the noise scale, and 40 for all, since the
    coordinates' variances write every gradient out. The measures below are selections of this
    one, which skip what they don't give; but two of them cost two passes, this one one.
    Memory: `batch_size` gradients a lane.

    Args:
      batch_size: per-example gradients held at once, at most; None for 32.

    Returns:
      A measure giving, all scalars,
      - `per_example_gradient_norm` and `per_example_gradient_norm_std`: see the measure;
      - `gradient_covariance_trace`: see the measure;
      - `gradient_noise_scale`: see the measure;
      - `gradient_stochasticity`, `gradient_signal_to_noise` and
        `gradient_signal_to_noise_median`: see `gradient_signal_to_noise`.
      It raises a ValueError on a dynamics without objective, or an objective without data.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    norms = ["per_example_gradient_norm", "per_example_gradient_norm_std"]
    names = [*norms, "gradient_covariance_trace", "gradient_noise_scale", *_SIGNAL_TO_NOISE]
    return _selection("gradient_noise", names, batch_size)


def per_example_gradient_norm(batch_size: int | None = None) -> Measure:
    """A measure of the mean and the spread of `|g_i|` over the training examples.

    Cost and memory: those of `gradient_noise`.

    Args:
      batch_size: per-example gradients held at once, at most; None for 32.

    Returns:
      A measure giving `per_example_gradient_norm = mean_i |g_i|` and
      `per_example_gradient_norm_std`, the (population) standard deviation of `|g_i|`; both in loss
      / parameter units.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    names = ["per_example_gradient_norm", "per_example_gradient_norm_std"]
    return _selection("per_example_gradient_norm", names, batch_size)


def gradient_covariance_trace(batch_size: int | None = None) -> Measure:
    """A measure of `tr Sigma = mean_i |g_i - G|^2` over the training examples.

    The population form; see the module. A regulariser that does not look at the examples leaves it
    alone. Cost and memory: those of `gradient_noise`.

    Args:
      batch_size: per-example gradients held at once, at most; None for 32.

    Returns:
      A measure giving `gradient_covariance_trace`, in (loss / parameter units)^2.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    return _selection("gradient_covariance_trace", ["gradient_covariance_trace"], batch_size)


def gradient_noise_scale(batch_size: int | None = None) -> Measure:
    """A measure of the simple noise scale `B_simple = tr Sigma / |G|^2`, exact over the data.

    The batch size at which a step's noise is as large as its signal. G includes the regulariser.
    Cost and memory: those of `gradient_noise`.
    Source: McCandlish, Kaplan, Amodei & OpenAI Dota Team, 2018, equation 2.9.

    Args:
      batch_size: per-example gradients held at once, at most; None for 32.

    Returns:
      A measure giving `gradient_noise_scale`, in examples; infinite where G is 0 and the noise not.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    return _selection("gradient_noise_scale", ["gradient_noise_scale"], batch_size)


def gradient_signal_to_noise(batch_size: int | None = None) -> Measure:
    """A measure of how large the mean gradient is beside its noise, as a whole and by coordinate.

    As a whole, the gradient stochasticity `GS = |G| / sqrt(tr Sigma)`, which is
    `B_simple^(-1/2)`; by coordinate `GSNR_j = G_j^2 / Sigma_jj`, averaged over the coordinates
    that have noise at all. Few coordinates of small variance carry the average, hence the median
    too. Cost and memory: those of `gradient_noise`, and a sort of the parameters.
    Source: Liu, Jiang, Bai, Chen & Wang, 2020, section 2 (GSNR); Lee, Cho & Kang, 2018 (GS).

    Args:
      batch_size: per-example gradients held at once, at most; None for 32.

    Returns:
      A measure giving `gradient_stochasticity`, `gradient_signal_to_noise` (the mean of GSNR) and
      `gradient_signal_to_noise_median`; without unit. The latter two are NaN where no
      coordinate has noise; there the first is infinite, or as large as rounding leaves it.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    return _selection("gradient_signal_to_noise", _SIGNAL_TO_NOISE, batch_size)


def update_cosine(snapshot: Snapshot) -> Float[Array, ""]:
    """`u_k . u_{k+1} / (|u_k| |u_{k+1}|)`, the cosine of this update and the next one.

    With `u_k = theta_{k+1} - theta_k`. Near 1 on a smooth path, near -1 where the iterates bounce
    between the walls of a valley, as at the edge of stability. Cost: one step more, so one
    gradient on its batch; memory: one state.

    Args:
      snapshot: what the step saw, with the dynamics that made it.

    Returns:
      Scalar in [-1, 1]; NaN where either update is 0.

    Raises:
      ValueError: if the snapshot does not carry its dynamics.
    """
    if snapshot.dynamics is None:
        raise ValueError(
            "update_cosine needs snapshot.dynamics, to look one step ahead; descent, flow and "
            "from_step fill it in, elsewhere use snapshot._replace(dynamics=...)."
        )
    first = _direction(snapshot.updates)
    second = _direction(snapshot.dynamics.observe(snapshot.next_state).updates)
    return jnp.asarray(optax.tree.vdot(first, second))


_SIGNAL_TO_NOISE = (
    "gradient_stochasticity",
    "gradient_signal_to_noise",
    "gradient_signal_to_noise_median",
)


def _selection(name: str, keys: Sequence[str], batch_size: int | None) -> Measure:
    """The measure of some of the values that the moments give."""
    if batch_size is not None:
        check_batch_size(batch_size)
    per_coordinate = not set(keys).isdisjoint(_SIGNAL_TO_NOISE)

    def measure(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        objective = objective_with_data(snapshot)
        moments = gradient_moments(
            lambda params, batch: objective.value(params, batch)[0],
            snapshot.params,
            objective.data,
            batch_size,
            per_coordinate,
        )
        values = _values(moments)
        return {key: values[key] for key in keys}

    measure.__name__ = name
    return measure


def _values(moments: GradientMoments) -> dict[str, Float[Array, ""]]:
    noise_scale = moments.covariance_trace / moments.squared_norm_of_mean
    values = {
        "per_example_gradient_norm": moments.norms.mean(),
        "per_example_gradient_norm_std": moments.norms.std(),
        "gradient_covariance_trace": moments.covariance_trace,
        "gradient_noise_scale": noise_scale,
    }
    if moments.variance is not None:
        mean, median = _coordinates_signal_to_noise(moments.mean, moments.variance)
        values |= zip(_SIGNAL_TO_NOISE, (1 / jnp.sqrt(noise_scale), mean, median), strict=True)
    return values


def _coordinates_signal_to_noise(
    mean: Params, variance: Params
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and median of `mean^2 / variance` over the coordinates that vary."""
    means, variances = (
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (mean, variance)
    )
    varies = variances != 0  # NaN varies, so that it shows
    ratios = jnp.square(means) / jnp.where(varies, variances, 1)
    count = varies.sum()
    average = jnp.where(varies, ratios, 0).sum() / count
    ordered = jnp.sort(jnp.where(varies, ratios, jnp.inf))
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return average, jnp.where((count == 0) | jnp.isnan(average), jnp.nan, middle)


def _direction(tree: Params) -> Params:
    norm = optax.tree.norm(tree)
    return jax.tree.map(lambda leaf: leaf / norm, tree)


def objective_with_data(snapshot: Snapshot) -> Objective:
    """The snapshot's objective.

    Args:
      snapshot: what the step saw.

    Returns:
      The objective, which has training data.

    Raises:
      ValueError: if there is no objective, or it has no data.
    """
    if snapshot.objective is None:
        raise ValueError("gradient noise needs a dynamics with an objective.")
    if snapshot.objective.size == 0:
        raise ValueError(
            "gradient noise needs training examples: build the Objective with data=..., or leave "
            "this measure out."
        )
    return snapshot.objective
