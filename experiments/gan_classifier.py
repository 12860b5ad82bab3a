"""The classifier that scores samples in Inception's place: trained here, on the same data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, ArrayLike, PRNGKeyArray

import driftlab
from driftlab import models, sampling
from driftlab.measures.samples import Features
from driftlab.models.gan import leaky_relu


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
      features: `images -> (features (n, d), probabilities (n, classes))`.
      accuracy: on the test images, between 0 and 1.
      training: how it was trained, in words, for reports and errors.
    """

    features: Features
    accuracy: float
    training: str


class _Network(nn.Module):
    """Convolutions, a dense layer whose rectified outputs are the features, and logits."""

    num_classes: int
    num_features: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        hidden = images
        for layer, channels in enumerate(self.channels):
            hidden = models.Convolution(
                channels, strides=2, initialization="he_normal", name=f"convolution_{layer}"
            )(hidden)
            hidden = leaky_relu(hidden)
        dense = models.Dense(self.num_features, initialization="he_normal", name="features")
        features = leaky_relu(dense(hidden.reshape(hidden.shape[0], -1)))
        return features, models.Dense(self.num_classes, name="logits")(features)


def train_classifier(
    train: Any,
    test: Any,
    num_classes: int,
    *,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: ArrayLike = 1e-3,
    num_features: int = 32,
    channels: tuple[int, ...] = (16, 32),
    key: PRNGKeyArray | None = None,
) -> Classifier:
    """Trains a small convolutional network with Adam, its rate falling to 0 along a cosine.

    Args:
      train: a `data.Batch` of images and class numbers.
      test: another, for the accuracy.
      num_classes: classes.
      steps: iterations.
      batch_size: examples each.
      learning_rate: at the start.
      num_features: d, of the layer before the logits: at most a tenth of the samples that are to
        be scored, for their covariance.
      channels: of the 3 x 3 convolutions of stride 2.
      key: of the initialisation and the batches.

    Returns:
      The classifier, with its test accuracy.
    """
    model = _Network(num_classes, num_features, tuple(channels))

    def apply(params: Any, images: Any) -> tuple[Array, Array]:
        found: Any = model.apply({"params": params}, jnp.asarray(images, float))
        return found

    objective = driftlab.Objective(
        models.cross_entropy(lambda params, images: apply(params, images)[1]),
        train,
        sampling.shuffled_epochs(min(batch_size, len(train.inputs))),
    )
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    dynamics = driftlab.descent(tx, objective)
    key = jax.random.key(0) if key is None else key

    @jax.jit
    def trained() -> Any:
        params = models.initialize(model, key, jnp.asarray(train.inputs[:1], float))
        state = dynamics.init(params, key)
        return jax.lax.fori_loop(0, steps, lambda _, s: dynamics.step(s), state).params

    params = trained()

    def features(images: Array) -> tuple[Array, Array]:
        found, logits = apply(params, images)
        return found, jax.nn.softmax(logits)

    correct = models.accuracy(lambda p, images: apply(p, images)[1])
    accuracy = float(jax.jit(correct)(params, test))
    return Classifier(features, accuracy, f"{steps} steps on {len(train.inputs)} images")


def require_accuracy(classifier: Classifier, threshold: float) -> Callable[..., Any]:
    """The classifier's features, if it knows the classes well enough to judge samples.

    Args:
      classifier: from `train_classifier`.
      threshold: the test accuracy it must reach.

    Returns:
      `classifier.features`.

    Raises:
      ValueError: saying how to train it, if it does not.
    """
    if not classifier.accuracy >= threshold:
        raise ValueError(
            f"the evaluation classifier has a test accuracy of {classifier.accuracy:.3f} after "
            f"{classifier.training}, below classifier_accuracy={threshold}: scores of samples "
            "would mean nothing. Train it for longer (--config.classifier_steps=...) or on more "
            "images (--config.train_size=0 for all), or lower --config.classifier_accuracy."
        )
    return classifier.features
