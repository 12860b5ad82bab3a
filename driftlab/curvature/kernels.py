"""Kernels as matrices: spectrum, alignment with targets, distance; and those of infinite width."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.factorizations import eigenvalues
from driftlab.curvature.vectors import all_finite


def kernel_spectrum(gram: Float[Array, "n n *outputs"]) -> Float[Array, " eigenvalues"]:
    """All eigenvalues of a kernel's Gram matrix, in descending order.

    For the loss `1/(2n) sum_i |f(x_i) - y_i|^2` the eigenvalues of the neural tangent kernel are n
    times those of the Gauss-Newton matrix, zeros aside. Cost: O((n o)^3), no gradient.

    Args:
      gram: `(n, n)`, or `(n, n, outputs, outputs)` as `ntk` returns it, read as a matrix of
        (example, output) pairs. Only its symmetric part counts.

    Returns:
      `(n,)` or `(n outputs,)`; all NaN if an entry is not finite.

    Raises:
      ValueError: for another shape.
    """
    matrix = _matrix(gram, "gram")
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"a spectrum needs the kernel between one set of inputs and itself; got gram of shape "
            f"{gram.shape}."
        )
    # LAPACK may not return from a matrix with NaN.
    finite = all_finite(matrix)
    values = eigenvalues(jnp.where(finite, (matrix + matrix.T) / 2, 0))
    return jnp.where(finite, values[::-1], jnp.nan)


def kernel_target_alignment(
    gram: Float[Array, "n n *outputs"], targets: Float[Array, "n *outputs"]
) -> Float[Array, ""]:
    """The cosine between a kernel and that of the targets, `<K, Y Y^T> / (|K|_F |Y Y^T|_F)`.

    For one target an example, or for blocks over outputs and the targets as one vector y, it is
    `y^T K y / (|K|_F |y|^2)`. From 0 to 1 for a positive semidefinite K, and 1 where K is a
    multiple of `Y Y^T` (Cristianini, Shawe-Taylor, Elisseeff and Kandola, 2001, definition 1).
    Neither is centred: subtract means first if wanted. Cost: O((n o)^2), no gradient.

    Args:
      gram: `(n, n)`, or `(n, n, outputs, outputs)` as `ntk` returns it.
      targets: `(n,)` or `(n, outputs)`. With an `(n, n)` gram, Y is the matrix of all outputs.

    Returns:
      Scalar without unit; NaN where the kernel or the targets are 0.

    Raises:
      ValueError: for shapes that do not fit.
    """
    gram, targets = jnp.asarray(gram), jnp.asarray(targets)
    matrix = _matrix(gram, "gram")
    fits = gram.shape[2:3] == targets.shape[1:] if gram.ndim == 4 else targets.ndim in (1, 2)
    if gram.shape[0] != gram.shape[1] or gram.shape[:1] != targets.shape[:1] or not fits:
        raise ValueError(
            "gram must be (n, n) with targets (n,) or (n, outputs), or (n, n, outputs, outputs) "
            f"with targets (n, outputs); got {gram.shape} and {targets.shape}."
        )
    dtype = jnp.result_type(jnp.float32, gram)
    matrix = _unit(matrix.astype(dtype))
    columns = _unit(targets.astype(dtype).reshape(matrix.shape[0], -1))
    # With |Y| = 1 and one column |Y Y^T| is 1 too; |Y Y^T| = |Y^T Y| is the smaller matrix.
    norm = jnp.sqrt(jnp.square(columns.T @ columns).sum())
    return (columns * (matrix @ columns)).sum() / norm


def kernel_distance(
    first: Float[Array, "n m *outputs"], second: Float[Array, "n m *outputs"]
) -> Float[Array, ""]:
    """How far two kernels are from being proportional: `1 - <K_0, K_1> / (|K_0|_F |K_1|_F)`.

    0 for proportional kernels, at most 1 for positive semidefinite ones (Fort et al., 2020).
    Computed as `|K_0 / |K_0| - K_1 / |K_1||^2 / 2`, which keeps its digits where the kernels are
    close; the difference from 1 has none left below a distance of 1e-7 in float32. Cost: O(n m),
    no gradient.

    Args:
      first: a kernel of any shape.
      second: one of the same shape, for example at a later time.

    Returns:
      Scalar without unit; NaN where a kernel is 0.

    Raises:
      ValueError: if the shapes differ.
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    if first.shape != second.shape:
        raise ValueError(
            f"the kernels must have the same shape; got {first.shape} and {second.shape}."
        )
    dtype = jnp.result_type(jnp.float32, first, second)
    return jnp.square(_unit(first.astype(dtype)) - _unit(second.astype(dtype))).sum() / 2


def relu_kernel(inputs: Float[Array, "n d"], *, both_layers: bool = False) -> Float[Array, "n n"]:
    """The neural tangent kernel of the two-layer ReLU network `TwoLayerReLU` at infinite width.

    `H_ij = x_i . x_j (pi - angle_ij) / (2 pi)`, the limit of the kernel when the hidden layer is
    trained (Du, Zhai, Poczos and Singh, 2019, section 3; for inputs of norm 1 there). When the
    output signs are trained too, `E_w[relu(w . x_i) relu(w . x_j)] = |x_i| |x_j| (sin angle_ij +
    (pi - angle_ij) cos angle_ij) / (2 pi)` is added: half the arc-cosine kernel of degree 1 (Cho
    and Saul, 2009).

    The supplement of the angle is `2 atan2(|u + v|, |u - v|)` with unit vectors u and v (Kahan),
    and the differences are taken entry by entry. So it has its digits at all angles: the error of
    an entry is a few times 1e-7 |x_i| |x_j| in float32, where arccos of the inner product has
    6e-5 for nearly parallel inputs. Cost: O(n^2 d) without matrix products, no gradient. Memory:
    O(n d + n^2).

    Args:
      inputs: n examples of any norms; the row of an input 0 is 0.
      both_layers: whether the output layer is trained too.

    Returns:
      `(n, n)`, exactly symmetric; the diagonal is exactly `|x_i|^2 / 2`, or `|x_i|^2` for both
      layers.

    Raises:
      ValueError: if inputs is not a floating-point matrix.
    """
    inputs = jnp.asarray(inputs)
    if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"inputs must be a floating-point matrix (n, d), one row an example; got shape "
            f"{inputs.shape} and {inputs.dtype}. Flatten images first."
        )
    squares = jnp.square(inputs).sum(1)
    norms = jnp.sqrt(squares)
    units = inputs / jnp.where(norms == 0, 1, norms)[:, None]

    def supplements(unit: Float[Array, " d"]) -> Float[Array, " n"]:
        plus = jnp.square(units + unit[None]).sum(1)
        minus = jnp.square(units - unit[None]).sum(1)
        return 2 * jnp.arctan2(jnp.sqrt(plus), jnp.sqrt(minus))

    supplement = jax.lax.map(supplements, units)
    cosine = -jnp.cos(supplement)
    entries = cosine * supplement
    if both_layers:
        entries = 2 * entries + jnp.sin(supplement)
    gram = norms[:, None] * norms[None] * (entries / (2 * jnp.pi))
    diagonal = squares if both_layers else squares / 2
    gram = (gram + gram.T) / 2
    return jnp.where(jnp.eye(len(inputs), dtype=bool), diagonal[:, None], gram)


def _matrix(gram: Array, name: str) -> Array:
    """A kernel as a matrix: blocks over outputs are written out."""
    gram = jnp.asarray(gram)
    if gram.ndim == 2 and gram.size:
        return gram
    if gram.ndim != 4 or gram.shape[2] != gram.shape[3] or not gram.size:
        raise ValueError(
            f"{name} must be (n, n) or (n, n, outputs, outputs), not empty; got {gram.shape}."
        )
    rows = gram.shape[0] * gram.shape[2]
    return gram.transpose(0, 2, 1, 3).reshape(rows, -1)


def _unit(array: Array) -> Array:
    """The array over its Frobenius norm, whose squares neither overflow nor underflow."""
    scaled = array / jnp.abs(array).max()
    return scaled / jnp.sqrt(jnp.square(scaled).sum())
