"""The prediction of instabilities, by direction and in all; drift against a flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows import gradient_flow
from driftlab.flows.discretization_drift import per_iteration_drift, total_drift
from driftlab.flows.instability import instability_prediction
from driftlab.flows.principal import principal_flow
from driftlab.flows.stability_coefficients import principal_coefficient

VALUES = jnp.array([4.0, 1.0, 0.5, -0.2])


def bowl(params):
    return jnp.sum(VALUES * params["a"] ** 2) / 2


def at(*coordinates):
    return {"a": jnp.array(coordinates)}


class TestPrediction:
    def test_of_a_quadratic_is_the_formula(self):
        h, params = 0.55, at(0.1, 1.0, 1.0, 0.3)
        found = jax.jit(instability_prediction(bowl, h, top=3))(params)
        squares = np.asarray(VALUES * params["a"]) ** 2
        alpha = np.asarray(principal_coefficient(h * VALUES))
        np.testing.assert_allclose(found.eigenvalues, VALUES[:3], rtol=1e-12)
        np.testing.assert_allclose(found.coefficients, alpha[:3], rtol=1e-12)
        np.testing.assert_allclose(found.squares, squares[:3], rtol=1e-9)
        np.testing.assert_allclose(found.loss_rates, alpha.real[:3] * squares[:3], rtol=1e-9)
        np.testing.assert_allclose(found.loss_rate, alpha.real @ squares, rtol=1e-9)

    @pytest.mark.parametrize(
        ("h", "start", "unstable"),
        [
            (0.49, (1.0, 0.1, 0.1, 0.0), False),
            (0.55, (1.0, 0.1, 0.1, 0.0), True),
            (0.55, (0.01, 0.1, 0.1, 0.0), False),
            (0.2, (1.0, 0.1, 0.1, 0.0), False),
        ],
    )
    def test_signs(self, h, start, unstable):
        """h lambda_1 > 2 and enough gradient there; so says the loss after a step."""
        found = jax.jit(lambda h, p: instability_prediction(bowl, h, top=1)(p))(h, at(*start))
        assert bool(found.unstable) == unstable
        assert bool(found.coefficients[0].real > 0) == (h * 4 > 2)
        after = at(*((1 - h * VALUES) * jnp.array(start)))
        assert bool(bowl(after) > bowl(at(*start))) == unstable
        # Below the singularity as above: the field that it is made from agrees.
        flow = principal_flow(bowl, h, state="real")
        slope = flow.field(0.0, at(*start), None)["a"]
        np.testing.assert_allclose(
            found.loss_rate, jnp.sum(slope * VALUES * jnp.array(start)), rtol=1e-9
        )

    def test_momentum_moves_the_threshold(self):
        @jax.jit
        def unstable(h):
            params = at(1.0, 0.0, 0.0, 0.0)
            return instability_prediction(bowl, h, top=1, momentum=0.5)(params).unstable

        assert not unstable(0.7)
        assert unstable(0.8)

    def test_at_the_edge_of_stability(self):
        """rosca.md, 2.4: signs agree with the loss' own on 4 iterations of 5, at least."""
        from tests.flows.test_principal import network

        loss, params, _, _ = network()
        h, gradient = 0.5, jax.grad(loss)

        def step(_, params):
            return jax.tree.map(lambda p, g: p - h * g, params, gradient(params))

        def observed(params, _):
            after = step(0, params)
            found = instability_prediction(loss, h, top=2, products=8)(params)
            record = found.unstable, loss(after) > loss(params), h * found.eigenvalues[0]
            return after, record

        @jax.jit
        def run(params):
            params = jax.lax.fori_loop(0, 400, step, params)
            return jax.lax.scan(observed, params, length=150)[1]

        predicted, rose, scaled = run(params)
        assert scaled.max() > 2.05
        assert rose.sum() >= 10
        assert (predicted == rose).mean() >= 0.8
        assert (predicted & rose).sum() >= 0.8 * rose.sum()

    def test_bad_arguments_are_refused(self):
        with pytest.raises(ValueError, match="learning_rate=-0.1 must be positive"):
            instability_prediction(bowl, -0.1)
        with pytest.raises(ValueError, match="products must be a whole number"):
            instability_prediction(bowl, 0.1, products=0)
        with pytest.raises(ValueError, match="top must be a whole number"):
            instability_prediction(bowl, 0.1, top=0)
        with pytest.raises(ValueError, match="k must be a whole number, from 1 to 4; got 6"):
            instability_prediction(bowl, 0.1)(at(1.0, 1.0, 1.0, 1.0))


class TestDrift:
    h = 0.3
    factors = np.asarray(1 - h * VALUES)
    iterates = jnp.asarray(factors[None] ** np.arange(5)[:, None])

    def test_of_gradient_flow(self):
        rates = np.exp(-self.h * np.asarray(VALUES))
        found = jax.jit(lambda x: per_iteration_drift(gradient_flow(bowl), x, self.h, rtol=1e-10))(
            {"a": self.iterates}
        )
        expected = np.linalg.norm((self.factors - rates) * np.asarray(self.iterates[:-1]), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        found = jax.jit(lambda x: total_drift(gradient_flow(bowl), x, self.h, rtol=1e-10))(
            {"a": self.iterates}
        )
        flow = rates[None] ** np.arange(1, 5)[:, None]
        expected = np.linalg.norm(flow - np.asarray(self.iterates[1:]), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-7)

    def test_of_the_principal_flow_is_none(self):
        flow = principal_flow(bowl, self.h, method="dense", continuation="linearized")
        for drift in (per_iteration_drift, total_drift):
            found = jax.jit(lambda x, drift=drift: drift(flow, x, self.h, rtol=1e-10))(
                {"a": self.iterates}
            )
            assert found.max() < 1e-8

    def test_a_failed_solve_is_nan(self):
        found = jax.jit(lambda x: total_drift(lambda t, y, args: y**2, x, 0.6, max_steps=200))(
            jnp.ones((4, 1))
        )
        assert jnp.isfinite(found[0])
        assert jnp.isnan(found[1:]).all()

    def test_one_iterate_is_refused(self):
        with pytest.raises(ValueError, match="two iterations or more"):
            total_drift(gradient_flow(bowl), at(1.0), 0.1)
