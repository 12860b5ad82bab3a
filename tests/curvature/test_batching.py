import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import curvature
from driftlab.curvature.batching import mean_over_batches
from tests.curvature.cases import CASES, draw

DATA = {"x": draw(0, 11, 3), "y": draw(1, 11)}


def means(batch):
    return {"x": batch["x"].mean(0), "product": (batch["x"] * batch["y"][:, None]).mean()}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 10, 11, 12, np.int64(3)])
def test_the_mean_over_batches_is_that_over_all(batch_size):
    found = mean_over_batches(means, DATA, batch_size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, means(DATA))


@pytest.mark.parametrize(
    ("batch_size", "largest"), [(None, 11), (4, 4), (11, 11), (1, 1), (10, 10), (100, 11)]
)
def test_no_more_examples_at_once_than_asked(batch_size, largest):
    sizes = []

    def function(batch):
        sizes.append(batch["y"].shape[0])
        return batch["y"].mean()

    mean_over_batches(function, DATA, batch_size)
    assert max(sizes) == largest
    assert len(sizes) <= 3  # traced, not called for each batch


def test_every_example_counts_once():
    weights = jax.jacrev(lambda y: mean_over_batches(jnp.mean, y, 4))(DATA["y"])
    np.testing.assert_allclose(weights, np.full(11, 1 / 11), rtol=1e-14)


def test_without_data_there_is_one_batch():
    assert mean_over_batches(lambda batch: 3.0, (), 5) == 3.0


@pytest.mark.parametrize("batch_size", [0, -3, 2.0, 1e9, True, "8", jnp.asarray(2)])
def test_batch_sizes_that_are_refused(batch_size):
    case = CASES["array"]
    message = "batch_size must be a positive integer, or None; got"
    with pytest.raises(ValueError, match=message):
        mean_over_batches(means, DATA, batch_size)
    with pytest.raises(ValueError, match=message):
        curvature.hessian(case.loss, case.params, case.data, batch_size)
    with pytest.raises(ValueError, match=message):
        curvature.gauss_newton(case.model, case.output_loss, case.params, case.data, batch_size)
    with pytest.raises(ValueError, match=message):
        curvature.fisher(case.model, case.family, case.params, case.data, batch_size)
    with pytest.raises(ValueError, match=message):
        curvature.empirical_fisher(case.loss, case.params, case.data, batch_size)
    with pytest.raises(ValueError, match=message):
        curvature.hessian(lambda p, _: p.sum() ** 2, case.params, batch_size=batch_size)


def test_data_that_cannot_be_divided_is_refused():
    for other in (draw(0, 12), jnp.asarray(1.0)):
        with pytest.raises(ValueError, match="leading axis of one length; got shapes"):
            mean_over_batches(lambda batch: batch["x"].mean(), {**DATA, "y": other}, 4)
