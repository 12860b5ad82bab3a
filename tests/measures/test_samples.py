"""Scores of samples against closed forms, SciPy's matrix root, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import sqrtm

from driftlab.game import Game
from driftlab.measures.samples import (
    Moments,
    feature_moments,
    frechet_distance,
    inception_score,
    reference_values,
    sample_quality,
    sample_scorer,
    sample_scores,
)
from driftlab.play import simultaneous

RANDOM = np.random.RandomState(0)


def features(images):
    flat = images.reshape(images.shape[0], -1)
    return flat[:, :3], jax.nn.softmax(flat[:, 3:])


def test_the_distance_is_that_of_matrix_roots():
    moments = [feature_moments(jnp.asarray(RANDOM.randn(20, 4) * s + s)) for s in (1.0, 2.5)]
    for part, data in zip(moments, [0, 1], strict=True):
        assert part.covariance.shape == (4, 4), data
    (m1, c1), (m2, c2) = (tuple(map(np.array, part)) for part in moments)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    np.testing.assert_allclose(jax.jit(frechet_distance)(*moments), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(moments[0], moments[0]), 0.0, atol=1e-12)
    data = RANDOM.randn(9, 3)
    np.testing.assert_allclose(feature_moments(jnp.asarray(data)).covariance, np.cov(data.T))


def test_commuting_and_singular_covariances():
    first = Moments(jnp.array([0.0, 1.0]), jnp.diag(jnp.array([4.0, 0.0])))
    second = Moments(jnp.array([3.0, 1.0]), jnp.diag(jnp.array([1.0, 9.0])))
    np.testing.assert_allclose(frechet_distance(first, second), 9 + 1 + 9, rtol=1e-12)


def test_single_precision_keeps_small_distances(float32):
    data = RANDOM.randn(400, 24) @ np.diag(np.logspace(-4, 0, 24))
    exact = data + 1e-3 * RANDOM.randn(400, 24)
    moments = [feature_moments(jnp.asarray(part, jnp.float32)) for part in (data, exact)]
    found = float(frechet_distance(*moments))
    (m1, c1), (m2, c2) = ((part.mean(0), np.cov(part.T)) for part in (data, exact))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    # A few roundings of the traces, 6; roots of eigenvalues of the product would be 1e-3 off.
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_inception_score_between_its_limits():
    np.testing.assert_allclose(inception_score(jnp.full((10, 4), 0.25)), (1.0, 0.0), atol=1e-12)
    sure = jnp.eye(4)[jnp.arange(20) % 4]
    np.testing.assert_allclose(inception_score(sure), (4.0, 0.0), atol=1e-12)
    soft = RANDOM.dirichlet(np.ones(4), 10)
    parts = soft.reshape(2, 5, 4)
    ratios = np.log(parts / parts.mean(1, keepdims=True))
    expected = np.exp((parts * ratios).sum(2).mean(1))
    found = inception_score(jnp.asarray(soft), 2)
    np.testing.assert_allclose(found, (expected.mean(), expected.std()), rtol=1e-12)
    with pytest.raises(ValueError, match=r"splits=3 must divide the 10"):
        inception_score(jnp.asarray(soft), 3)


def test_real_images_score_better_than_noise():
    centres = 3 * RANDOM.randn(5, 8)
    images = centres[RANDOM.randint(5, size=600)] + 0.1 * RANDOM.randn(600, 8)
    images = jnp.asarray(images).reshape(600, 2, 4, 1)
    scorer = sample_scorer(features, images[:400])
    ends = reference_values(scorer, images[400:], jax.random.key(0))
    assert 0 < float(ends["real"]["classifier_fid"]) < 0.1 * float(ends["noise"]["classifier_fid"])
    assert set(ends["noise"]) == {"classifier_fid", "classifier_is", "classifier_is_std"}


def test_what_is_not_finite_scores_nan():
    images = jnp.asarray(RANDOM.randn(20, 2, 4, 1))
    scorer = sample_scorer(features, images)
    found = sample_scores(scorer, images.at[0, 0, 0, 0].set(jnp.nan))
    assert all(bool(jnp.isnan(value)) for value in found.values())


def test_the_measure_samples_at_the_evaluation_point():
    scorer = sample_scorer(features, jnp.asarray(RANDOM.randn(20, 2, 4, 1)))
    latents = jnp.asarray(RANDOM.randn(10, 8))

    def sample(params):
        return (latents * params["generator"].reshape(1, 8)).reshape(10, 2, 4, 1)

    def loss(params, batch):
        return jnp.sum(params["generator"] * params["discriminator"])

    game = Game({"generator": loss, "discriminator": loss})
    dynamics = simultaneous({p: optax.sgd(0.1) for p in game.players}, game)
    params = {"generator": jnp.full(8, 0.7), "discriminator": jnp.ones(8)}
    snapshot = dynamics.observe(dynamics.init(params, jax.random.key(0)))
    found = jax.jit(lambda: sample_quality(scorer, sample)(snapshot))()
    expected = sample_scores(scorer, (0.7 * latents).reshape(10, 2, 4, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


def test_bad_features_are_refused():
    images = jnp.ones((6, 2, 4, 1))
    with pytest.raises(ValueError, match=r"features must give"):
        sample_scorer(lambda x: (x.reshape(6, -1), x.reshape(6, -1)[:5]), images)
    with pytest.raises(ValueError, match="not finite"):
        sample_scorer(lambda x: (x.reshape(6, -1) * jnp.nan, jnp.ones((6, 1))), images)
    with pytest.raises(ValueError, match="apply a softmax"):
        sample_scorer(lambda x: (x.reshape(6, -1), x.reshape(6, -1)), images)
    with pytest.raises(ValueError, match=r"n > 1"):
        feature_moments(jnp.ones((1, 3)))
