"""The neural tangent kernel along a run: how far it moves, and how it turns to the targets."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.kernels import kernel_distance, kernel_spectrum, kernel_target_alignment
from driftlab.curvature.ntk import ntk
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Tracker
from driftlab.objective import Params


def kernel(
    apply: Callable[[Params, Array], Float[Array, "n *outputs"]],
    inputs: Float[Array, "n *features"],
    targets: Float[Array, "n *outputs"] | None = None,
    *,
    eigenvalues: int = 1,
    trace_outputs: bool = True,
    batch_size: int | None = None,
) -> Tracker:
    """The empirical neural tangent kernel on a few inputs, beside that at initialisation.

    In the lazy regime it stays where it began, and the distance is near 0; where features are
    learned it moves, and turns towards the targets. For the loss `1/(2n) sum_i |f_i - y_i|^2` its
    largest eigenvalue over n is the sharpness of the Gauss-Newton matrix (`trace_outputs=False`).
    Cost: the kernel of n inputs a record, and once at the start; see `curvature.ntk`.

    Args:
      apply: `apply(params, inputs) -> outputs`, as `models.apply_function` makes it.
      inputs: n inputs, a fixed sample of the training data; the kernel has n^2 entries.
      targets: their labels, one-hot or real; None for no alignment.
      eigenvalues: how many of the largest are recorded.
      trace_outputs: the mean of the kernel over outputs, `(n, n)`; else all its blocks, and a
        matrix of `(n outputs)^2` entries.
      batch_size: inputs at once, to bound memory; None for all.

    Returns:
      A tracker of `kernel_distance` from the first record's kernel, in [0, 1];
      `kernel_eigenvalue`, the largest (with several `kernel_eigenvalues`, descending); and
      with targets `kernel_target_alignment`.

    Raises:
      ValueError: if `eigenvalues` is not a positive integer; from a sweep, for shapes that do not
        fit.
    """
    if not isinstance(eigenvalues, int) or isinstance(eigenvalues, bool) or eigenvalues < 1:
        raise ValueError(f"eigenvalues must be a positive integer; got {eigenvalues!r}.")
    inputs = jnp.asarray(inputs)

    def gram(params: Params) -> Array:
        return ntk(apply, params, inputs, trace_outputs=trace_outputs, batch_size=batch_size)

    def update(snapshot: Snapshot, first: Array) -> tuple[dict[str, Array], Array]:
        present = gram(snapshot.params)
        spectrum = kernel_spectrum(present)
        if eigenvalues > spectrum.size:
            raise ValueError(
                f"kernel(eigenvalues={eigenvalues}) asks for more than the {spectrum.size} that "
                "the kernel has."
            )
        values = {
            "kernel_distance": kernel_distance(first, present),
            "kernel_eigenvalue": spectrum[0],
        }
        if eigenvalues > 1:
            values["kernel_eigenvalues"] = spectrum[:eigenvalues]
        if targets is not None:
            values["kernel_target_alignment"] = kernel_target_alignment(
                present, jnp.asarray(targets, present.dtype)
            )
        return values, first

    return Tracker("kernel", gram, update)
