"""The max-margin direction of separable data, by a support vector machine."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike

_LARGE = 1e10  # a penalty so large that no example may be inside the margin
_ITERATIONS = 1_000_000


class MaxMargin(NamedTuple):
    """The hard-margin separator through the origin.

    Attributes:
        direction: the unit vector w that maximises `min_i y_i <w, x_i>`, `(features,)`.
        margin: gamma, that maximum, in units of the inputs.
        support: the examples with `y_i <w, x_i> = gamma` that hold w in place.
    """

    direction: Float[np.ndarray, " features"]
    margin: float
    support: Int[np.ndarray, " support"]


class NotSeparableError(ValueError):
    """Data that no hyperplane through the origin separates."""


def max_margin(inputs: ArrayLike, signs: ArrayLike, name: str = "the data") -> MaxMargin:
    """Finds the direction to which gradient descent on a linear network converges.

    The hard-margin support vector machine without an intercept: scikit-learn's on the examples and
    their mirror images, whose intercept is 0 by symmetry. Its support vectors then give w to
    rounding, as the least-norm solution of `y_i <w, x_i> = 1`. For a separator with an intercept
    append a constant feature, as the network would need it.

    Args:
        inputs: examples along the first axis; each is flattened.
        signs: -1 or +1, `(n,)`.
        name: what the data are called in an error.

    Returns:
        Direction, margin and support, in float64.

    Raises:
        NotSeparableError: a ValueError that says how many examples are on the wrong side of the
            best hyperplane found.
        ValueError: shapes that do not fit, other targets than signs, numbers that are not finite,
            inputs that are all 0.
        ImportError: scikit-learn is not installed.
    """
    rows, labels = _checked(inputs, signs)
    towards = labels.reshape(-1, 1) * rows
    # Scaled, so that the penalty is large whatever the units are.
    unit = np.linalg.norm(towards, axis=1).max()
    start, support = _fitted(towards / unit)
    weights = _polished(towards / unit, start, support)
    outputs = towards @ weights / np.linalg.norm(weights)
    if not outputs.min() > 1e-9 * unit:
        raise NotSeparableError(
            f"{name} cannot be separated by a hyperplane through the origin: the support vector "
            f"machine leaves {int((outputs <= 0).sum())} of {len(rows)} examples on the wrong "
            "side or on it. The risk then has a minimum, and the theory of alignment does not "
            "apply. Choose two other classes or fewer examples, or append a constant feature for "
            "an intercept."
        )
    held = support[np.isclose(outputs[support], outputs.min(), rtol=1e-6, atol=0)]
    return MaxMargin(weights / np.linalg.norm(weights), float(outputs.min()), held)


def _checked(
    inputs: ArrayLike, signs: ArrayLike
) -> tuple[Float[np.ndarray, "n features"], Num[np.ndarray, " n"]]:
    rows, labels = np.asarray(inputs, float), np.asarray(signs, float).reshape(-1)
    if rows.ndim < 2 or len(rows) != len(labels) or not len(rows):
        raise ValueError(
            f"inputs {rows.shape} and signs {np.shape(signs)} need the same first axis, one "
            "example an entry, and at least one example."
        )
    rows = rows.reshape(len(rows), -1)
    if not np.isin(labels, (-1, 1)).all():
        raise ValueError(f"signs must be -1 or +1; got {np.unique(labels).tolist()[:8]}.")
    if not np.isfinite(rows).all():
        raise ValueError("inputs must be finite; there are NaNs or infinities among them.")
    if not rows.any():
        raise ValueError("inputs must not all be 0: they have no direction.")
    return rows, labels


def _fitted(
    towards: Float[np.ndarray, "n features"],
) -> tuple[Float[np.ndarray, " features"], Int[np.ndarray, " support"]]:
    """A separator near the best one, and the examples that seem to hold it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    mirrored = np.concatenate([towards, -towards])
    sides = np.repeat([1, -1], len(towards))
    machine = SVC(kernel="linear", C=_LARGE, tol=1e-8, max_iter=_ITERATIONS, cache_size=500)
    with warnings.catch_warnings():
        # Where the examples cannot be separated it never converges, which is checked by the caller.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(mirrored, sides)
    return machine.coef_[0], np.unique(machine.support_ % len(towards))


def _polished(
    towards: Float[np.ndarray, "n features"],
    start: Float[np.ndarray, " features"],
    support: Int[np.ndarray, " support"],
) -> Float[np.ndarray, " features"]:
    """The separator that its support vectors give exactly, where that is the better one."""
    if not np.linalg.norm(start) > 0:
        return np.ones_like(start)
    exact = np.linalg.lstsq(towards[support], np.ones(len(support)), rcond=None)[0]
    candidates = [w / np.linalg.norm(w) for w in (start, exact) if np.linalg.norm(w) > 0]
    return max(candidates, key=lambda w: float((towards @ w).min()))
