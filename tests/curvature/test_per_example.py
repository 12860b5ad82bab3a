import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.curvature.per_example import gradient_moments, per_example_gradient_norms

RANDOM = np.random.RandomState(0)
DATA = (RANDOM.standard_normal((10, 3)), RANDOM.randint(0, 4, 10))
PARAMS = {
    "first": {"kernel": RANDOM.standard_normal((3, 5)), "bias": RANDOM.standard_normal(5)},
    "second": {"kernel": RANDOM.standard_normal((5, 4)), "bias": RANDOM.standard_normal(4)},
}


def loss(params, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"][None])
    logits = hidden @ params["second"]["kernel"] + params["second"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def rows(params=PARAMS, data=DATA, loss=loss, size=1):
    """Every example's gradient, one call of `grad` each: `(n, parameters)`."""
    gradients = [
        jax.grad(loss)(params, jax.tree.map(lambda a, i=i: a[i : i + size], data))
        for i in range(0, len(jax.tree.leaves(data)[0]), size)
    ]
    return np.stack([np.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in gradients])


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# One chunk, exact division, remainders, one at a time, the default, more than there are.
@pytest.mark.parametrize("batch_size", [10, 5, 3, 4, 7, 1, None, 100])
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_equals_numpy_on_the_stacked_gradients(batch_size, per_coordinate):
    moments = jax.jit(
        lambda params: gradient_moments(loss, params, DATA, batch_size, per_coordinate)
    )(PARAMS)
    each = rows()
    norms = np.linalg.norm(each, axis=1)
    close = dict(rtol=1e-12)
    assert moments.count == 10
    np.testing.assert_allclose(flat(moments.mean), each.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.covariance_trace, each.var(0).sum(), **close)
    np.testing.assert_allclose(moments.covariance_trace, np.trace(np.cov(each.T, ddof=0)), **close)
    np.testing.assert_allclose(moments.sample_covariance_trace, np.trace(np.cov(each.T)), **close)
    np.testing.assert_allclose(moments.mean_squared_norm, (norms**2).mean(), **close)
    np.testing.assert_allclose(moments.squared_norm_of_mean, (each.mean(0) ** 2).sum(), **close)
    np.testing.assert_allclose(moments.norms, norms, **close)
    distances = np.linalg.norm(each - each.mean(0)[None], axis=1)
    np.testing.assert_allclose(moments.distances, distances, **close)
    directions = (each / norms[:, None]).sum(0)
    np.testing.assert_allclose(flat(moments.direction_sum), directions, rtol=1e-12, atol=1e-14)
    assert moments.nonzero_count == 10
    if per_coordinate:
        np.testing.assert_allclose(flat(moments.variance), each.var(0), rtol=1e-11, atol=1e-17)
        chex.assert_trees_all_equal_shapes(moments.variance, PARAMS)
    else:
        assert moments.variance is None


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_norms_one_by_one(batch_size):
    norms = per_example_gradient_norms(loss, PARAMS, DATA, batch_size)
    np.testing.assert_allclose(norms, np.linalg.norm(rows(), axis=1), rtol=1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_micro_batches(size):
    moments = gradient_moments(loss, PARAMS, DATA, 2, micro_batch_size=size)
    each = rows(size=size)
    assert moments.count == 10 // size
    np.testing.assert_allclose(moments.covariance_trace, each.var(0).sum(), rtol=1e-12)
    np.testing.assert_allclose(flat(moments.mean), rows().mean(0), rtol=1e-12, atol=1e-15)


def test_mean_is_the_gradient_of_the_mean_and_a_regularizer_leaves_the_covariance():
    def decayed(params, batch):
        return loss(params, batch) + 3 * optax.tree.norm(params, squared=True)

    plain = gradient_moments(loss, PARAMS, DATA)
    moments = gradient_moments(decayed, PARAMS, DATA)
    chex.assert_trees_all_close(moments.mean, jax.grad(decayed)(PARAMS, DATA), rtol=1e-12)
    # The regulariser's gradient is 20 times the loss's, so 1e-16 of it is 1e-14 of the covariance.
    np.testing.assert_allclose(moments.covariance_trace, plain.covariance_trace, rtol=1e-12)


def linear(params, batch):
    """Gradients that are the examples themselves."""
    return jnp.mean(batch @ params)


def test_zero_gradients_have_no_direction():
    data = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    moments = gradient_moments(linear, jnp.zeros(2), data)
    np.testing.assert_allclose(moments.direction_sum, [0.6, 1.8], rtol=1e-15)
    assert moments.nonzero_count == 2
    np.testing.assert_allclose(moments.norms, [5, 0, 2], rtol=1e-15)


def test_one_example_has_no_covariance():
    moments = gradient_moments(linear, jnp.zeros(2), np.ones((1, 2)))
    assert moments.covariance_trace == 0
    assert np.isnan(moments.sample_covariance_trace)


def test_coordinates_on_which_examples_agree_have_no_variance_at_all():
    """Not even rounding's: 0.1 is not a binary fraction, and 37 of them sum with an error."""
    data = np.stack([np.full(37, 0.1), RANDOM.standard_normal(37)], 1)
    moments = gradient_moments(linear, jnp.zeros(2), data, 8, per_coordinate=True)
    assert moments.variance[0] == 0
    np.testing.assert_allclose(moments.mean[0], 0.1, rtol=1e-15)
    np.testing.assert_allclose(moments.variance[1], data[:, 1].var(), rtol=1e-13)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-4, 1e-6])
def test_small_noise_on_a_large_mean_in_single_precision(ratio):
    """Where the difference of second moments has no digit left, the distances have."""
    random = np.random.RandomState(1)
    data = (1 + ratio * random.standard_normal((500, 40))).astype(np.float32)
    exact = data.astype(np.float64).var(0).sum()
    moments = gradient_moments(linear, jnp.zeros(40), data)
    # What is left is the rounding of the mean gradient, about 1e-7 of it, once it shows.
    np.testing.assert_allclose(moments.covariance_trace, exact, rtol=2e-6 + (2e-7 / ratio) ** 2)
    if ratio <= 1e-4:
        each = jnp.asarray(data)
        naive = jnp.mean(jnp.sum(each**2, 1)) - jnp.sum(each.mean(0) ** 2)
        assert abs(naive / exact - 1) > 0.9  # it is 0, or several times too large


@pytest.mark.usefixtures("float32")
def test_half_precision_parameters_are_measured_in_single_precision():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    moments = gradient_moments(loss, params, jax.tree.map(jnp.asarray, DATA))
    assert {leaf.dtype for leaf in jax.tree.leaves(moments.mean)} == {jnp.dtype("float32")}
    assert moments.covariance_trace.dtype == jnp.float32


def test_mixed_precision():
    params = {**PARAMS, "first": jax.tree.map(np.float32, PARAMS["first"])}
    moments = gradient_moments(loss, params, DATA, 4)
    np.testing.assert_allclose(moments.covariance_trace, rows().var(0).sum(), rtol=1e-5)


def test_lanes_under_vmap_equal_single_calls():
    lanes = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), PARAMS)
    together = jax.vmap(lambda params: gradient_moments(loss, params, DATA, 4).covariance_trace)(
        lanes
    )
    for index, value in enumerate(together):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], lanes)
        np.testing.assert_allclose(value, rows(params).var(0).sum(), rtol=1e-12)


def test_nan_parameters_give_nan():
    params = jax.tree.map(lambda leaf: leaf * np.nan, PARAMS)
    moments = gradient_moments(loss, params, DATA, 4)
    assert np.isnan(moments.covariance_trace)
    assert np.isnan(moments.norms).all()
    assert np.isnan(flat(moments.direction_sum)).all()
    assert np.isnan(per_example_gradient_norms(loss, params, DATA)).all()


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_refuses_what_is_no_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        gradient_moments(loss, PARAMS, DATA, batch_size)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        per_example_gradient_norms(loss, PARAMS, DATA, batch_size)
    with pytest.raises(ValueError, match="micro_batch_size must be a positive integer"):
        gradient_moments(loss, PARAMS, DATA, micro_batch_size=batch_size)


def test_refuses_data_without_examples():
    for data in [(), np.zeros((0, 2))]:
        with pytest.raises(ValueError, match="need examples"):
            gradient_moments(lambda params, _: jnp.sum(params**2), jnp.ones(2), data)


def test_refuses_micro_batches_that_do_not_fit():
    with pytest.raises(ValueError, match="micro_batch_size=3 does not divide the 10 examples"):
        gradient_moments(loss, PARAMS, DATA, micro_batch_size=3)
