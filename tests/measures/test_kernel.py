import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, curvature, descent, sweep
from driftlab.measures import kernel, record

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network():
    """A 3-5-2 tanh network: `(apply, params, inputs, targets)`."""
    rng = np.random.RandomState(0)
    params = {"first": rng.standard_normal((3, 5)), "second": rng.standard_normal((5, 2))}
    inputs, targets = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))

    def apply(params, inputs):
        return jnp.tanh(inputs @ params["first"]) @ params["second"]

    return apply, jax.tree.map(jnp.asarray, params), jnp.asarray(inputs), jnp.asarray(targets)


def build_of(network):
    apply, params, inputs, targets = network

    def loss(params, batch):
        return ((apply(params, batch[0]) - batch[1]) ** 2).sum(1).mean() / 2

    def build(hparams, key):
        objective = Objective(loss, (inputs, targets))
        return descent(optax.sgd(hparams["learning_rate"]), objective), params

    return build


def test_follows_the_kernel_from_its_start(network):
    apply, params, inputs, targets = network
    build = build_of(network)
    rates = [0.01, 0.1]
    result = sweep(
        build,
        Grid({"learning_rate": rates}),
        steps=6,
        record_every=3,
        measures=[kernel(apply, inputs, targets, eigenvalues=2)],
        progress=False,
    )
    first = curvature.ntk(apply, params, inputs, trace_outputs=True)
    for lane, rate in enumerate(rates):
        run, _ = build({"learning_rate": rate}, KEY)
        state = run.init(params, KEY)
        for index in range(3):
            present = curvature.ntk(apply, state.params, inputs, trace_outputs=True)
            expected = {
                "kernel_distance": curvature.kernel_distance(first, present),
                "kernel_eigenvalues": np.linalg.eigvalsh(present)[::-1][:2],
                "kernel_eigenvalue": np.linalg.eigvalsh(present)[-1],
                "kernel_target_alignment": curvature.kernel_target_alignment(present, targets),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(
                    result[name].values[lane, index], value, rtol=1e-9, atol=1e-12, err_msg=name
                )
            for _ in range(3):
                state = run.step(state)
    assert (result.kernel_distance[:, 1:] > 0).all()


def test_its_largest_eigenvalue_is_the_gauss_newton_sharpness(network):
    apply, params, inputs, targets = network
    run, _ = build_of(network)({"learning_rate": 0.1}, KEY)
    values, _ = record(
        [kernel(apply, inputs, trace_outputs=False)], run.observe(run.init(params, KEY))
    )
    operator = curvature.gauss_newton(
        lambda p, batch: apply(p, batch[0]),
        lambda outputs, batch: ((outputs - batch[1]) ** 2).sum(1).mean() / 2,
        params,
        (inputs, targets),
    )
    sharpness = curvature.eigenpairs(operator, tolerance=1e-9).values[0]
    np.testing.assert_allclose(values["kernel_eigenvalue"], 6 * sharpness, rtol=1e-9)
    assert "kernel_target_alignment" not in values


def test_refuses_more_eigenvalues_than_there_are(network):
    apply, params, inputs, _ = network
    with pytest.raises(ValueError, match="eigenvalues must be"):
        kernel(apply, inputs, eigenvalues=0)
    run, _ = build_of(network)({"learning_rate": 0.1}, KEY)
    with pytest.raises(ValueError, match="more than the 6"):
        kernel(apply, inputs, eigenvalues=7)(run.observe(run.init(params, KEY)))
