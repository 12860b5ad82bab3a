"""The thresholds, from the optimisers themselves: where their linearised step leaves the circle."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from driftlab import curvature
from experiments.edge_methods import make_methods

SETTINGS = {"optimizers": "gradient_descent,heavy_ball,nesterov,rmsprop,adam", "eps": 1e-8}
COEFFICIENTS = [(0.9, 0.9, 0.99), (0.5, 0.8, 0.9), (0.0, 0.0, 0.999)]


def methods(momentum=0.9, b1=0.9, b2=0.99, **changes):
    settings = SETTINGS | {"momentum": momentum, "b1": b1, "b2": b2} | changes
    return make_methods(ml_collections.ConfigDict(settings))


def late_state(transform, theta):
    """A state after many steps, with a second moment of 1."""
    known = {"count": jnp.asarray(100_000), "nu": jnp.ones(())}
    return jax.tree.map(
        lambda state: state._replace(**{k: v for k, v in known.items() if k in state._fields}),
        transform.init(theta),
        is_leaf=lambda state: hasattr(state, "_fields"),
    )


def linearized(transform):
    """`curve -> Jacobian` of `(theta, state) -> (theta, state)` on curve theta^2 / 2, at theta = 0.

    There the second moment does not change to first order, and its own eigenvalue is b2 < 1: what
    is left is the recurrence at a fixed preconditioner.
    """
    theta = jnp.zeros(())
    leaves, structure = jax.tree.flatten((theta, late_state(transform, theta)))
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def step(values, curve):
        now = list(leaves)
        for index, value in zip(moving, values, strict=True):
            now[index] = value
        theta, state = jax.tree.unflatten(structure, now)
        update, state = transform.update(curve * theta, state, theta)
        after = jax.tree.leaves((optax.apply_updates(theta, update), state))
        return jnp.stack([after[index] for index in moving])

    values = jnp.stack([leaves[index] for index in moving])
    return jax.jit(lambda curve: jax.jacobian(step)(values, curve))


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("name", SETTINGS["optimizers"].split(","))
def test_constant_is_where_the_spectral_radius_passes_1(name, coefficients):
    method, rate, b2 = methods(*coefficients)[name], 0.01, coefficients[2]
    transform, theta = method.transform(rate), jnp.zeros(())
    _, state = transform.update(theta, late_state(transform, theta), theta)
    divisor = float(
        curvature.preconditioner(state, b2=b2, eps=1e-8, eps_in_sqrt=False, identity_like=theta)
    )
    jacobian = linearized(transform)
    low, high = 0.1 * divisor / rate, 1000 * divisor / rate
    for _ in range(60):
        middle = (low + high) / 2
        radius = np.abs(np.linalg.eigvals(np.asarray(jacobian(middle)))).max()
        low, high = (middle, high) if radius <= 1 + 1e-12 else (low, middle)
    # A root that leaves the circle at -1 does so at a rate of order 1 in the curvature, so the
    # slack of 1e-12 above moves the edge by a few times as much.
    np.testing.assert_allclose(low / divisor * rate, method.constant, rtol=1e-9)


def test_constants_of_the_usual_coefficients():
    constants = {name: method.constant for name, method in methods().items()}
    assert constants["adam"] == pytest.approx(38)
    assert constants["heavy_ball"] == pytest.approx(3.8)
    assert constants["nesterov"] == pytest.approx(3.8 / 2.8)
    assert constants["gradient_descent"] == constants["rmsprop"] == 2


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"no optimizer 'adm'.*did you mean adam"):
        methods(optimizers="gradient_descent,adm")
    with pytest.raises(ValueError, match=r"config.momentum=1.0 must lie in \[0, 1\)"):
        methods(momentum=1.0)
