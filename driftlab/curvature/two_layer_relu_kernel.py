"""The tangent kernel of the two-layer ReLU network at finite width, and whether it is definite.

The network is `u(x) = 1 / sqrt(m) sum_r a_r relu(w_r . x)`, that of `models.TwoLayerReLU` and of
Du, Zhai, Poczos and Singh (2019). The limit of its kernel is `curvature.relu_kernel`.
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from driftlab.curvature.kernels import kernel_spectrum


def relu_gram(
    inputs: Float[Array, "n d"],
    hidden: Float[Array, "d m"],
    output: Float[Array, " m"] | None = None,
    *,
    both_layers: bool = False,
) -> Float[Array, "n n"]:
    """The tangent kernel of the network on its inputs, from its activation patterns.

    With `P_ir = 1{w_r . x_i >= 0}` the hidden layer's part is
    `H = (X X^T) * (P diag(a^2) P^T) / m`, entry by entry, and the output layer's
    `G = relu(X W) relu(X W)^T / m`. For the loss `1/2 sum_i (u_i - y_i)^2` the outputs of gradient
    flow obey `du/dt = H (y - u)`, or `(H + G) (y - u)` where both layers are trained. The rectifier
    counts as active at exactly 0, where JAX's derivative is 0: weights that start at 0 differ.

    Args:
      inputs: n examples, X.
      hidden: the w_r as columns, W.
      output: the a_r; None for signs, whose squares are 1.
      both_layers: whether the output layer is trained too, which adds G.

    Returns:
      `(n, n)`, symmetric and positive semidefinite up to rounding.

    Raises:
      ValueError: for shapes that do not fit.

    Source: Du, Zhai, Poczos and Singh (2019), section 3 (H), section 3.3 (G). Cost: three matrix
    products, `2 n d m + 2 n^2 m + 2 n^2 d` flops, and one more of `2 n^2 m` for G. No gradient.
    """
    inputs, hidden = jnp.asarray(inputs), jnp.asarray(hidden)
    output = None if output is None else jnp.asarray(output)
    fits = inputs.ndim == hidden.ndim == 2 and inputs.shape[1] == hidden.shape[0]
    if not fits or (output is not None and jnp.shape(output) != hidden.shape[1:]):
        raise ValueError(
            "inputs must be (n, d), hidden (d, m) with the units as columns, output (m,) or None; "
            f"got {inputs.shape}, {hidden.shape} and {output if output is None else output.shape}."
        )
    width = hidden.shape[1]
    preactivations = inputs @ hidden
    active = (preactivations >= 0).astype(preactivations.dtype)
    weighted = active if output is None else active * jnp.square(output)[None]
    gram = (inputs @ inputs.T) * (active @ weighted.T) / width
    if both_layers:
        # Not jax.nn.relu, so that NaN weights give NaN here as they do in `preactivations`.
        rectified = active * preactivations
        gram = gram + rectified @ rectified.T / width
    # Comparisons drop NaN: a kernel of weights that are not finite must not look like one.
    finite = jnp.isfinite(preactivations).all()
    return jnp.where(finite, gram, jnp.nan)


def parallel_rows(inputs: Float[Array, "n d"]) -> list[tuple[int, int]]:
    """Pairs of inputs with the same direction, whatever their norms, and inputs 0 as `(i, i)`.

    Any such pair makes the kernels of the network singular; opposite directions do not, because
    no unit is active on both. Equal means to 32 rounding errors of the inputs' type.

    Args:
      inputs: n examples, concrete.

    Returns:
      `(i, j)` with i < j, in order; each j once, with the first i that it is parallel to.

    Raises:
      ValueError: if inputs is not a matrix.

    Source: Du, Zhai, Poczos and Singh (2019), theorem 3.1. Cost: O(n^2 d), on the host.
    """
    given = np.asarray(inputs)
    if given.ndim != 2:
        raise ValueError(f"inputs must be (n, d), one row an example; got {given.shape}.")
    tolerance = 32 * np.finfo(np.result_type(given, np.float16)).eps
    rows = given.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    units = rows / np.where(norms == 0, 1, norms)[:, None]
    pairs = []
    for j, unit in enumerate(units):
        if norms[j] == 0:
            pairs.append((j, j))
            continue
        # Differences rather than inner products, which lose half the digits near 1.
        near = np.abs(units[:j] - unit).max(axis=1, initial=0) <= tolerance
        if near.any():
            pairs.append((int(near.argmax()), j))
    return pairs


def smallest_eigenvalue(
    gram: Float[Array, "n n"], inputs: Float[Array, "n d"] | None = None
) -> Float[Array, ""]:
    """The smallest eigenvalue of a kernel, `lambda_0` for that of infinite width.

    Gradient flow fits any labels at the rate lambda_0, so one that is 0 says that some labels are
    never fitted; it raises where the kernel is concrete. 0 means less than `4 sqrt(n)` rounding
    errors of the largest eigenvalue, below which its digits mean nothing.

    Args:
      gram: the kernel, as `relu_gram` or `curvature.relu_kernel` return it.
      inputs: the inputs it is of, to name those that are parallel in the error; or None.

    Returns:
      Scalar; NaN if an entry is not finite. Under `jit` it is returned unchecked.

    Raises:
      ValueError: for another shape; if it is 0, naming the rows of inputs to blame.

    Cost: O(n^3), no gradient.
    """
    if jnp.ndim(gram) != 2:
        raise ValueError(f"gram must be (n, n); got {jnp.shape(gram)}.")
    values = kernel_spectrum(gram)
    least = values[-1]
    if isinstance(least, Tracer):
        return least
    floor = 4 * len(values) ** 0.5 * float(jnp.finfo(values.dtype).eps) * float(values[0])
    if float(least) <= floor:
        raise ValueError(
            f"the smallest eigenvalue of the kernel is {float(least):.3g}, 0 to the precision of "
            f"{values.dtype} (largest: {float(values[0]):.3g}): there are labels that gradient "
            f"descent cannot fit. {_blame(inputs)}"
        )
    return least


def _blame(inputs: Float[Array, "n d"] | None) -> str:
    """Why a kernel is singular, and what to do about it."""
    if inputs is None:
        return "Pass inputs= to see which of them are parallel."
    pairs = parallel_rows(inputs)
    if not pairs:
        return (
            "No two inputs are parallel: the width is too small for this many examples, or the "
            "inputs are too close to parallel for this precision (compute in 64 bits)."
        )
    zero = [j for i, j in pairs if i == j]
    parallel = [pair for pair in pairs if pair[0] != pair[1]]
    shown = ", ".join(f"{i} and {j}" for i, j in parallel[:5])
    more = f" and {len(parallel) - 5} more pairs" if len(parallel) > 5 else ""
    found = [f"rows {shown}{more} of inputs are parallel"] * bool(parallel)
    found += [f"rows {', '.join(map(str, zero[:5]))} of inputs are 0"] * bool(zero)
    return f"{'; '.join(found).capitalize()}: keep one of each direction, and none that is 0."
