"""Spectral normalisation as a transform of parameters, by power iteration.

A loss must be a pure function of parameters, so nothing is updated behind its back. Either the
iteration starts afresh from a fixed vector in every call (`spectrally_normalized`); or the vectors
are carried, and then they are parameters: `{"weights": ..., "vectors": ...}`, with a gradient of 0,
moved by `carry_spectral_vectors` around the player's own optimiser. So they are checkpointed,
belong to one player, and do not move while another one does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.objective import Params

# Path of a kernel -> (apply(kernel, x), linear in both; the shape of x).
Layers = Mapping[str, tuple[Callable[[Array, Array], Array], tuple[int, ...]]]
# Path of a kernel -> the present estimate of its leading right singular vector.
Vectors = dict[str, Array]


def largest_singular_value(
    kernel: Array,
    vector: Array,
    iterations: int = 1,
    apply: Callable[[Array, Array], Array] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """The largest singular value of a layer by power iteration, and its right singular vector.

    `u = W v / |W v|`, `v = W^T u / |W^T u|`, then `sigma = u . W v`, u and v held fixed where sigma
    is differentiated: the derivative of a singular value is `u v^T`, exact once they have
    converged. sigma never exceeds the true value.

    Args:
      kernel: of the layer.
      vector: v to start from, in the shape of the layer's input.
      iterations: how many; 0 takes the vector as it is.
      apply: the layer without bias, `apply(kernel, x)`, linear in both: the true operator norm of a
        convolution, at the size of its input. None for the matrix `kernel.reshape(-1, outputs)`:
        of a dense layer the operator itself, of a convolution the published normalisation, which
        bounds the operator norm only up to the root of the kernel's pixels.

    Returns:
      `(sigma, v)`, v after the iterations.

    Source: Miyato, Kataoka, Koyama & Yoshida (2018), algorithm 1; for convolutions as operators
    Gouk et al. (2021). Cost: `2 iterations + 1` applications of the layer to one input.
    """

    def forward(weights: Array, x: Array) -> Array:
        if apply is None:
            return weights.reshape(-1, weights.shape[-1]) @ x
        return apply(weights, x)

    fixed = jax.lax.stop_gradient(kernel)

    def iterate(_: Any, v: Array) -> Array:
        u, pull = jax.vjp(lambda x: forward(fixed, x), v)
        return _unit(pull(_unit(u))[0])

    v = jax.lax.stop_gradient(_unit(vector.astype(kernel.dtype)))
    if iterations:
        v = jax.lax.stop_gradient(jax.lax.fori_loop(0, iterations, iterate, v))
    u = jax.lax.stop_gradient(_unit(forward(fixed, v)))
    return jnp.vdot(u, forward(kernel, v)), v


def initial_vectors(params: Params, layers: Layers | None = None) -> Vectors:
    """Where the power iterations start: one fixed random direction for each kernel.

    Args:
      params: a tree whose leaves called "kernel" are normalised, and nothing else: biases are not.
      layers: the kernels that are operators and the shapes of their inputs, as
        `driftlab.models.gan.convolution_layers` finds them; those left out count as matrices.

    Returns:
      Path, joined by "/" -> unit vector, `(outputs,)` of a matrix, in the input's shape of an
      operator. The same for the same shapes, whatever the values.

    Raises:
      ValueError: if layers name no kernel of params.
    """
    kernels = _kernels(params)
    unknown = sorted(set(layers or {}) - set(kernels))
    if unknown or not kernels:
        raise ValueError(
            f"layers name {unknown}; the kernels in params are {sorted(kernels)}."
            if kernels
            else "params hold no leaf called 'kernel': there is nothing to normalise."
        )
    vectors = {}
    for place, (path, kernel) in enumerate(kernels.items()):
        shape = layers[path][1] if layers and path in layers else kernel.shape[-1:]
        key = jax.random.fold_in(jax.random.key(0), place)
        vectors[path] = _unit(jax.random.normal(key, shape, kernel.dtype))
    return vectors


def spectral_normalize(
    params: Params,
    vectors: Vectors,
    iterations: int = 1,
    *,
    layers: Layers | None = None,
    bound: ArrayLike = 1.0,
    only_above: bool = False,
) -> tuple[Params, Vectors]:
    """Every kernel with its largest singular value made K: `W K / sigma(W)`.

    Args:
      params: see `initial_vectors`.
      vectors: where the iterations start, from `initial_vectors` or the last call.
      iterations: of each kernel.
      layers: as of `initial_vectors`.
      bound: K; may be traced.
      only_above: whether kernels with `sigma < K` stay as they are: `W / max(sigma / K, 1)`.

    Returns:
      `(params, vectors)`: the normalised parameters, differentiable in params with sigma
      differentiated too, and the vectors after the iterations. A kernel of zeros stays zero.

    Source: Miyato et al. (2018), equations 8 and 12; `only_above` as in Gouk et al. (2021).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    moved, normalized = {}, []
    for path, leaf in leaves:
        name = _name(path)
        if name not in vectors:
            normalized.append(leaf)
            continue
        apply = layers[name][0] if layers and name in layers else None
        sigma, moved[name] = largest_singular_value(leaf, vectors[name], iterations, apply)
        factor = sigma / jnp.asarray(bound, sigma.dtype)
        factor = jnp.maximum(factor, 1) if only_above else jnp.where(sigma == 0, 1, factor)
        normalized.append(leaf / factor)
    return jax.tree.unflatten(structure, normalized), moved


def spectrally_normalized(
    apply: Callable[..., Any],
    iterations: int = 5,
    *,
    layers: Layers | None = None,
    bound: ArrayLike = 1.0,
    only_above: bool = False,
    carried: bool = False,
) -> Callable[..., Any]:
    """A network's function with its kernels normalised before use.

    Args:
      apply: `(params, ...) -> outputs`.
      iterations: of each call, from the fixed start. With `carried` the vectors in params are used
        as they are, and this is not read.
      layers: as of `initial_vectors`.
      bound: K.
      only_above: as of `spectral_normalize`.
      carried: whether params are `{"weights": ..., "vectors": ...}`, as `with_vectors` makes them.

    Returns:
      A function of the same arguments.
    """
    options: dict[str, Any] = {"layers": layers, "bound": bound, "only_above": only_above}

    def normalized(params: Params, *args: Any) -> Any:
        if carried:
            weights, vectors = params["weights"], jax.lax.stop_gradient(params["vectors"])
            return apply(spectral_normalize(weights, vectors, 0, **options)[0], *args)
        start = initial_vectors(params, layers)
        return apply(spectral_normalize(params, start, iterations, **options)[0], *args)

    return normalized


def with_vectors(
    params: Params, iterations: int = 20, layers: Layers | None = None
) -> dict[str, PyTree]:
    """Parameters that carry the vectors of their power iteration.

    Args:
      params: the weights.
      iterations: a warm-up, without which the first estimates of sigma are far too small.
      layers: as of `initial_vectors`.

    Returns:
      `{"weights": params, "vectors": ...}`.
    """
    vectors = initial_vectors(params, layers)
    vectors = spectral_normalize(params, vectors, iterations, layers=layers)[1]
    return {"weights": params, "vectors": vectors}


def carry_spectral_vectors(
    tx: optax.GradientTransformation, iterations: int = 1, layers: Layers | None = None
) -> optax.GradientTransformation:
    """An optimiser of `with_vectors` params: tx for the weights, power iteration for the vectors.

    The vectors after an update are those of the weights before it: one update of its own player
    each, none in the others' turns.

    Args:
      tx: any optax chain, for the weights alone.
      iterations: of each update.
      layers: as of `initial_vectors`.

    Returns:
      The transformation; its state is tx's. Extra arguments such as `value_fn` are not passed on:
      they are about other parameters.
    """

    def init(params: Params) -> Any:
        return tx.init(params["weights"])

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError(
                "carry_spectral_vectors needs params: tx.update(updates, state, params)."
            )
        moved, state = tx.update(updates["weights"], state, params["weights"])
        weights, vectors = params["weights"], params["vectors"]
        following = spectral_normalize(weights, vectors, iterations, layers=layers)[1]
        return {"weights": moved, "vectors": jax.tree.map(jnp.subtract, following, vectors)}, state

    return optax.GradientTransformation(init, update)


def _kernels(params: Params) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        _name(path): leaf
        for path, leaf in leaves
        if _name(path).split("/")[-1] == "kernel" and leaf.ndim >= 2
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _unit(x: Array) -> Array:
    norm = jnp.sqrt(jnp.vdot(x, x))
    return x / jnp.where(norm == 0, jnp.ones_like(norm), norm)
