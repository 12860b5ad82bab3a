import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, curvature, descent, sweep, with_replacement
from driftlab.measures import every, loss
from driftlab.measures.hessian import probe_key
from driftlab.measures.spectrum import (
    hessian_effective_rank,
    hessian_trace,
    rayleigh_quotient,
    spectral_density,
)

KEY = jax.random.key(0)
EIGENVALUES = np.array([10.0, 4.0, 1.0, -3.0, 0.0])


def snapshot_of(hessian, start=None, sampling=None):
    """Of gradient descent on x^T H x / 2, where a batch of one example scales H."""
    hessian = jnp.asarray(hessian)
    scales = jnp.array([0.5, 1.5, 1.0, 1.0])

    def scaled(x, batch):
        return batch.mean() * x @ hessian @ x / 2

    objective = Objective(scaled, scales, *([] if sampling is None else [sampling]))
    run = descent(optax.sgd(0.1), objective)
    start = jnp.ones(len(hessian)) if start is None else jnp.asarray(start)
    return run.observe(run.init(start, KEY))


@pytest.fixture(scope="module")
def rotated():
    q = np.linalg.qr(np.random.RandomState(0).standard_normal((5, 5)))[0]
    return (q * EIGENVALUES) @ q.T


def test_rayleigh_quotient_along_the_gradient(rotated):
    start = np.arange(1.0, 6)
    gradient = rotated @ start
    expected = gradient @ rotated @ gradient / (gradient @ gradient)
    np.testing.assert_allclose(rayleigh_quotient()(snapshot_of(rotated, start)), expected)
    np.testing.assert_allclose(
        rayleigh_quotient(batch_size=3)(snapshot_of(rotated, start)), expected
    )
    assert np.isnan(rayleigh_quotient()(snapshot_of(rotated, np.zeros(5))))


def test_data_says_whose_hessian(rotated):
    snapshot = snapshot_of(rotated, sampling=with_replacement(1))
    scale = float(snapshot.batch[0])
    full, step = rayleigh_quotient()(snapshot), rayleigh_quotient(data="step")(snapshot)
    np.testing.assert_allclose(step, scale * full)


def test_trace_of_a_diagonal_matrix_is_exact():
    for method in ("hutchinson", "xtrace"):  # as many products as dimensions, for the second
        values = hessian_trace(6, method)(snapshot_of(np.diag(EIGENVALUES)))
        np.testing.assert_allclose(values["hessian_trace"], EIGENVALUES.sum(), atol=1e-12)
        np.testing.assert_allclose(values["hessian_trace_error"], 0, atol=1e-12)


def test_trace_is_within_its_error(rotated):
    values = hessian_trace(100)(snapshot_of(rotated))
    off = abs(values["hessian_trace"] - EIGENVALUES.sum())
    assert 0 < off < 3 * values["hessian_trace_error"]


def test_probes_differ_from_record_to_record_and_not_by_call(rotated):
    snapshot = snapshot_of(rotated)
    later = snapshot._replace(state=snapshot.state._replace(step=jnp.int32(1)))
    first, again, other = (
        hessian_trace(4)(s)["hessian_trace"] for s in (snapshot, snapshot, later)
    )
    assert first == again != other
    drawn = jax.random.key_data(probe_key(snapshot))
    assert not np.array_equal(drawn, jax.random.key_data(jax.random.fold_in(KEY, 0)))


def test_effective_rank():
    assert hessian_effective_rank()(snapshot_of(np.eye(5))) == pytest.approx(5)
    assert hessian_effective_rank()(snapshot_of(np.zeros((5, 5)))) == 0
    expected = EIGENVALUES.sum() ** 2 / (EIGENVALUES**2).sum()
    assert hessian_effective_rank()(snapshot_of(np.diag(EIGENVALUES))) == pytest.approx(expected)


def test_density_holds_the_spectrum(rotated):
    values = spectral_density(probes=4, steps=10)(snapshot_of(rotated))
    nodes, weights = values["density_nodes"], values["density_weights"]
    assert nodes.shape == (4, 5)  # no more than dimensions
    np.testing.assert_allclose(nodes, np.tile(np.sort(EIGENVALUES), (4, 1)), atol=1e-12)
    np.testing.assert_allclose(weights.sum(1), 1)
    rule = curvature.Quadrature(nodes, weights, 5)
    density = curvature.spectral_density(rule, width=0.3)
    np.testing.assert_allclose(jnp.trapezoid(density.values, density.grid), 1, rtol=1e-3)


def test_in_a_sweep_over_lanes():
    def build(hparams, key):
        objective = Objective(lambda x, _: jnp.sum(jnp.asarray(EIGENVALUES[:3]) * x**4) / 12)
        return descent(optax.sgd(hparams["learning_rate"]), objective), jnp.ones(3)

    recorded = [loss, hessian_trace(4), hessian_effective_rank(4), rayleigh_quotient()]
    result = sweep(
        build,
        Grid({"learning_rate": [1e-3, 1e-2]}),
        steps=4,
        record_every=2,
        measures=[*recorded, every(spectral_density(2, 3), 2)],
        progress=False,
    )
    np.testing.assert_allclose(result.hessian_trace[:, 0], 15, rtol=1e-12)
    assert (result.hessian_trace[1, 1:] < result.hessian_trace[0, 1:]).all()
    assert result.density_nodes.shape == (2, 3, 2, 3)
    assert np.isnan(result.density_nodes[:, 1]).all()


def test_refuses_arguments_out_of_range(rotated):
    for make in (rayleigh_quotient, hessian_trace, hessian_effective_rank, spectral_density):
        with pytest.raises(ValueError, match='data must be "full" or "step"'):
            make(data="none")
    with pytest.raises(ValueError, match="products must be"):
        hessian_effective_rank(1)
    with pytest.raises(ValueError, match="needs products=6"):
        hessian_trace(3, "hutch++")(snapshot_of(rotated))
    with pytest.raises(ValueError, match="probes=2"):
        spectral_density(1)(snapshot_of(rotated))
