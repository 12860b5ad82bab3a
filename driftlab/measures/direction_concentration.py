"""How much the directions of minibatch gradients agree: von Mises-Fisher concentration.

At fixed parameters, n minibatch gradients `g_1 .. g_n` have directions `x_i = g_i / |g_i|` with
mean resultant length `R = |mean x_i|`: 1 if all agree, near `1/sqrt(n)` if they are uniform on the
sphere of R^d. Source: Lee, Cho & Kang (2018), "Directional analysis of stochastic gradient descent
via von Mises-Fisher distributions in deep learning".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.curvature.vectors import check_count
from driftlab.dynamics import Snapshot
from driftlab.measures.direction_moments import DirectionMoments, stream_moments
from driftlab.measures.gradient_noise import objective_with_data
from driftlab.measures.layerwise import layer_names
from driftlab.measures.recording import Measure
from driftlab.measures.von_mises_fisher import banerjee_concentration
from driftlab.objective import Objective, Params
from driftlab.sampling import check_batch_size

# Batches of this measure are drawn from `fold_in(fold_in(key, _DIRECTIONS), step)`, training's from
# `fold_in(key, step)`. The constant is "vmfd" in ASCII, 2.0e9: no run has that many steps.
_DIRECTIONS = 0x766D6664


def gradient_directions(
    count: int = 100,
    batch_size: int | None = None,
    layers: Sequence[str] | bool = False,
    at_once: int = 1,
) -> Measure:
    """A measure of the concentration of n minibatch gradients' directions, and of its relatives.

    With x_i the directions, `R = |mean x_i|`, T the unbiased trace of the minibatch gradients'
    covariance and `|G|^2 = |mean g_i|^2 - T/n`:

    - `minibatch_resultant`: R;
    - `minibatch_concentration`: `kappa_hat / d = R (1 - R^2/d) / (1 - R^2)`, Banerjee's estimate
      over the dimension (Lee, Cho & Kang give kappa_hat: multiply by d);
    - `minibatch_concentration_floor`: what uniform directions give, `sqrt(n) / (n - 1)`: nothing
      below or near it says that gradients agree;
    - `minibatch_mean_cosine`: `(n R^2 - 1) / (n - 1)`, the mean over pairs, unbiased for
      `|E x|^2`; below 0 at times;
    - `minibatch_concentration_unbiased`: kappa_hat / d with that in place of R^2 (0 where it is
      below 0), which has no floor;
    - `minibatch_signal_to_noise`: `b = |G|^2 / T`, which is batch size / noise scale (McCandlish et
      al. 2018), from unbiased parts; below 0 at times;
    - `minibatch_concentration_predicted`: `sqrt(b (1 + b))` (0 where b < 0), which the unbiased
      concentration is where the noise has many directions of like size: concentration, gradient
      stochasticity and noise scale are one number there;
    - `minibatch_gradient_stochasticity`: `GS = |mean g_i| / sqrt(T)`, a signal-to-noise ratio; of
      the finite sample, as the paper has it, so with a floor of `1/sqrt(n)`;
    - `minibatch_norm_stochasticity`: `GNS = mean |g_i| / std |g_i|`;
    - `minibatch_zero_gradients`: how many of the n gradients are 0. They have no direction and are
      left out of the directions, and n is the number of the others there. With fewer than two of
      those the directional values are NaN.

    All without unit. 1 - R^2 is the variance of the directions, never a difference, so that float32
    suffices for R near 1. The batches are drawn with replacement, a pure function of (state.key,
    state.step), independent of the training batches; batch normalisation is fine, since no gradient
    of a single example is taken.
    Cost: n minibatch gradients. Memory: `at_once` gradients and two trees of parameters (twice that
    with layers), whatever n is. Everything is a mean updated gradient by gradient.

    Args:
      count: n >= 2 minibatch gradients; the floor falls as 1/sqrt(n).
      batch_size: examples in each; None for that of the objective's sampling.
      layers: whether to measure every layer too, or the names of those to (see `layer_names`), as
        `<name>_<layer>`, from the same gradients. `layerwise(gradient_directions(...))` gives the
        same numbers, for n gradients a layer.
      at_once: gradients computed together by vmap; divides n.

    Returns:
      A measure of the values above. It raises a ValueError on a dynamics without objective or data,
      a full-batch objective if batch_size is None, parameters (or a layer) of dimension 1, and
      layers that do not exist.

    Raises:
      ValueError: if the numbers are not positive integers as described.
    """
    for name, value in (("count", count), ("at_once", at_once)):
        check_count(name, value)
    if count < 2 or count % at_once:
        raise ValueError(
            f"count={count} must be 2 or more, and a multiple of at_once={at_once}: one direction "
            "says nothing about agreement."
        )
    if batch_size is not None:
        check_batch_size(batch_size)

    def measure(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        objective = objective_with_data(snapshot)
        size = batch_size or _sampled(objective)
        groups = _groups(snapshot.params, layers)
        key = jax.random.fold_in(snapshot.state.key, _DIRECTIONS)
        key = jax.random.fold_in(key, snapshot.state.step)

        def gradient(key: PRNGKeyArray) -> Params:
            indices = jax.random.randint(key, (size,), 0, objective.size, jnp.int32)
            batch = jax.tree.map(lambda array: array[indices], objective.data)
            return jax.grad(lambda params: objective.value(params, batch)[0])(snapshot.params)

        keys = jax.random.split(key, count)
        streamed = stream_moments(gradient, keys, snapshot.params, groups, at_once)
        return {
            f"{name}_{layer}" if layer else name: value
            for layer, moments in streamed.items()
            for name, value in direction_values(moments).items()
        }

    measure.__name__ = "gradient_directions"
    return measure


def direction_values(moments: DirectionMoments) -> dict[str, Float[Array, ""]]:
    """What `gradient_directions` gives, from the moments of the gradients.

    Args:
      moments: of n gradients.

    Returns:
      Name -> scalar, see there.
    """
    dtype = moments.mean_norm.dtype
    n, directed = (x.astype(dtype) for x in (moments.count, moments.nonzero_count))
    square, complement = moments.squared_resultant, moments.direction_variance
    enough = directed > 1
    others = jnp.where(enough, directed - 1, 1)
    resultant = jnp.sqrt(square)
    cosine = (directed * square - 1) / others
    unbiased = jnp.sqrt(jnp.maximum(cosine, 0))
    # n (1 - R^2) / (n - 1) is 1 - cosine, again without a difference.
    concentrations = (
        _concentration(resultant, moments.dimension, complement),
        _concentration(unbiased, moments.dimension, complement * directed / others),
    )
    trace = moments.squared_deviation / (n - 1)
    signal = moments.squared_norm_of_mean - trace / n
    ratio = signal / trace
    directional = {
        "minibatch_resultant": resultant,
        "minibatch_mean_cosine": cosine,
        "minibatch_concentration": concentrations[0],
        "minibatch_concentration_unbiased": concentrations[1],
        "minibatch_concentration_floor": jnp.sqrt(directed) / others,
    }
    positive = jnp.where(ratio > 0, ratio, 0 * ratio)  # a NaN stays
    return {name: jnp.where(enough, value, jnp.nan) for name, value in directional.items()} | {
        "minibatch_signal_to_noise": ratio,
        "minibatch_concentration_predicted": jnp.sqrt(positive * (1 + positive)),
        "minibatch_gradient_stochasticity": jnp.sqrt(moments.squared_norm_of_mean / trace),
        "minibatch_norm_stochasticity": moments.mean_norm
        / jnp.sqrt(moments.norm_deviation / (n - 1)),
        "minibatch_zero_gradients": n - directed,
    }


def _concentration(resultant: Array, dimension: int, complement: Array) -> Array:
    # Of equal directions rounding may make R more than 1, which is refused where it is known.
    return banerjee_concentration(jnp.minimum(resultant, 1), dimension, complement) / dimension


def _sampled(objective: Objective) -> int:
    size = objective.sampling.batch_size
    if size is None:
        raise ValueError(
            "the objective's steps use the full batch, whose gradient has one direction: give "
            "gradient_directions a batch_size."
        )
    return size


def _groups(params: Params, layers: Sequence[str] | bool) -> dict[str, tuple[int, ...]]:
    """Name -> positions of leaves; the whole is called ""."""
    leaves = jax.tree.leaves(params)
    groups = {"": tuple(range(len(leaves)))}
    if isinstance(layers, str):
        raise ValueError(f"layers must be a boolean or a sequence of names; got {layers!r}.")
    if layers:
        found = layer_names(params)
        wanted = found if layers is True else layers
        unknown = [layer for layer in wanted if layer not in found]
        if unknown:
            raise ValueError(f"layers={unknown}: there are {list(found)}.")
        groups |= {layer: found[layer] for layer in wanted}
    for name, positions in groups.items():
        if sum(leaves[index].size for index in positions) < 2:
            owner = f"the layer {name!r} has" if name else "params have"
            raise ValueError(
                f"{owner} one parameter: a direction on a line is a sign, and has no "
                "concentration. Leave it out of layers."
            )
    return groups
