"""How good samples are, by the features and class probabilities of a classifier one has.

The Frechet distance and the inception score with any classifier in Inception's place: one trained
on the same data, without a download (`experiments/gan_classifier.py`), or a user's own. Values are
comparable between runs with the same classifier, and with nothing else; the scale's ends
(`reference_values`) belong beside them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.curvature.factorizations import eigh, singular_values
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.objective import Params

# images -> (features (n, d), class probabilities (n, classes))
Features = Callable[[Array], tuple[Array, Array]]


class Moments(NamedTuple):
    """Mean and covariance of features.

    Attributes:
      mean: `(d,)`.
      covariance: `(d, d)`, with n - 1 in the denominator.
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]


class SampleScorer(NamedTuple):
    """A classifier, and what real images look like to it.

    Attributes:
      features: `images -> (features, probabilities)`.
      reference: the moments of real images' features.
      splits: parts of the inception score.
    """

    features: Features
    reference: Moments
    splits: int


def feature_moments(features: Float[Array, "n d"]) -> Moments:
    """Mean and covariance over examples.

    Args:
      features: one row an example.

    Returns:
      The moments.

    Raises:
      ValueError: if there are fewer than two rows.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"features must be (n, d) with n > 1; got shape {features.shape}.")
    mean = features.mean(axis=0)
    centred = features - mean.reshape(1, -1)
    return Moments(mean, centred.T @ centred / (features.shape[0] - 1))


def frechet_distance(first: Moments, second: Moments) -> Float[Array, ""]:
    """The squared Frechet distance of two normal distributions.

    `|m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^{1/2} C_2 C_1^{1/2})^{1/2}`. The last trace is the
    sum of the singular values of `C_1^{1/2} C_2^{1/2}`, roots by `eigh`: symmetric throughout, no
    complex numbers, and no root of an eigenvalue that is only rounding, which costs half the digits
    (float32 keeps about 1e-6 of the traces this way).

    Args:
      first: moments.
      second: moments of as many features.

    Returns:
      The scalar, in squared feature units; NaN if a moment is.

    Source: Dowson & Landau (1982); Heusel et al. (2017), equation 6. Cost: two eigendecompositions
    and a singular value decomposition of d x d matrices.
    """

    def root(covariance: Array) -> Array:
        values, vectors = eigh(covariance)
        # maximum would turn a NaN of a diverged run into 0
        values = jnp.where(values < 0, jnp.zeros_like(values), values)
        return (vectors * jnp.sqrt(values).reshape(1, -1)) @ vectors.T

    overlap = singular_values(root(first.covariance) @ root(second.covariance)).sum()
    difference = first.mean - second.mean
    traces = jnp.trace(first.covariance) + jnp.trace(second.covariance)
    return difference @ difference + traces - 2 * overlap


def inception_score(
    probabilities: Float[Array, "n classes"], splits: int = 5
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`exp(mean_x KL(p(y|x) | p(y)))` of each of some equal parts.

    Args:
      probabilities: p(y|x), one row an image.
      splits: parts, with a p(y) each.

    Returns:
      The mean over parts, from 1 (all images alike) to the number of classes, and the standard
      deviation over parts.

    Raises:
      ValueError: if the parts are not equal.

    Source: Salimans et al. (2016), section 4, with ten parts.
    """
    count, classes = probabilities.shape
    if splits < 1 or count % splits:
        raise ValueError(f"splits={splits} must divide the {count} images into equal parts.")
    parts = probabilities.reshape(splits, count // splits, classes)
    marginal = parts.mean(axis=1, keepdims=True)
    # 0 log 0 = 0, and a NaN stays one.
    entropies = jax.scipy.special.xlogy(parts, parts) - jax.scipy.special.xlogy(parts, marginal)
    scores = jnp.exp(entropies.sum(axis=2).mean(axis=1))
    return scores.mean(), scores.std()


def sample_scorer(
    features: Features, images: Array | np.ndarray, splits: int = 5, batch_size: int = 1000
) -> SampleScorer:
    """The scale on which samples are measured.

    Args:
      features: `images -> (features (n, d), probabilities (n, classes))`, pure; for Inception
        weights of one's own, a function that rescales images and calls the network.
      images: real images, as many as there are: their moments are the reference.
      splits: parts of the inception score.
      batch_size: real images looked at together, to bound memory.

    Returns:
      The scorer.

    Raises:
      ValueError: if features, or probabilities, are no such arrays, or not finite.
    """
    images = jnp.asarray(images)
    count, parts = images.shape[0], []
    look = jax.jit(features)
    for start in range(0, count, batch_size):
        parts.append(look(images[start : start + batch_size]))
    found, probabilities = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    if found.ndim != 2 or probabilities.ndim != 2 or {count} != {len(found), len(probabilities)}:
        raise ValueError(
            "features must give (features (n, d), probabilities (n, classes)) of n images; of "
            f"{images.shape} it gave {found.shape} and {probabilities.shape}."
        )
    if not isinstance(found, Tracer):
        if not bool(jnp.isfinite(found).all() & jnp.isfinite(probabilities).all()):
            raise ValueError("the classifier's features of real images are not finite.")
        sums = probabilities.sum(axis=1)
        if not bool((probabilities >= 0).all() & (jnp.abs(sums - 1) < 1e-3).all()):
            raise ValueError(
                f"probabilities must be 0 or more and sum to 1; the rows sum to {float(sums.min())}"
                f" .. {float(sums.max())}: apply a softmax to logits."
            )
    return SampleScorer(features, feature_moments(found), splits)


def sample_scores(scorer: SampleScorer, images: Array) -> dict[str, Float[Array, ""]]:
    """The scores of samples.

    Args:
      scorer: the scale.
      images: samples. The Frechet distance of n of them is too large by about `tr C / n`.

    Returns:
      `classifier_fid`, `classifier_is` and its deviation over splits, `classifier_is_std`; NaN for
      images that are not finite.
    """
    features, probabilities = scorer.features(images)
    score, deviation = inception_score(probabilities, scorer.splits)
    distance = frechet_distance(feature_moments(features), scorer.reference)
    finite = jnp.isfinite(features).all()
    return {
        "classifier_fid": jnp.where(finite, distance, jnp.nan),
        "classifier_is": jnp.where(finite, score, jnp.nan),
        "classifier_is_std": jnp.where(finite, deviation, jnp.nan),
    }


def reference_values(
    scorer: SampleScorer, images: Array | np.ndarray, key: PRNGKeyArray
) -> dict[str, dict[str, Float[Array, ""]]]:
    """The ends of the scale: held-out real images, and noise.

    Args:
      scorer: the scale.
      images: real images that the reference has not seen, as many as samples will be.
      key: of the noise: uniform pixels between the smallest and the largest of images.

    Returns:
      "real" and "noise" -> scores.
    """
    images = jnp.asarray(images)
    noise = jax.random.uniform(key, images.shape, images.dtype, images.min(), images.max())
    return {"real": sample_scores(scorer, images), "noise": sample_scores(scorer, noise)}


def sample_quality(scorer: SampleScorer, sample: Callable[[Params], Array]) -> Measure:
    """A measure of the samples that a run makes, at `snapshot.eval_params`.

    Args:
      scorer: the scale.
      sample: `params -> images`, with latents of its own, the same at every record.

    Returns:
      A measure of `classifier_fid`, `classifier_is` and `classifier_is_std`. Cost: the samples and
      their features a record.
    """

    def sample_quality(snapshot: Snapshot) -> dict[str, Any]:
        return sample_scores(scorer, sample(snapshot.eval_params))

    return sample_quality
