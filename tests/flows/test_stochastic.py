import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Objective
from driftlab.flows import observed_orders
from driftlab.flows.stochastic import covariance_factor, noise_basis, sgd_sde
from driftlab.objective import regularized
from driftlab.sampling import shuffled_epochs, with_replacement

RANDOM = np.random.RandomState(0)
EXAMPLES = {"x": RANDOM.randn(12, 3), "y": RANDOM.randn(12)}
PARAMS = {"a": jnp.asarray(RANDOM.randn(3, 2)), "b": jnp.asarray(RANDOM.randn(2))}


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch["y"]) ** 2)


OBJECTIVE = Objective(network_loss, EXAMPLES, with_replacement(3))
# Li, Tai & E's own example: two losses gamma x^2 / 2, gamma = 1/2 and 3/2, one drawn each step.
GAMMAS = Objective(
    lambda x, gamma: jnp.mean(gamma) * x**2 / 2, jnp.array([0.5, 1.5]), with_replacement(1)
)


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def per_example_gradients(params=PARAMS):
    def of_one(x, y):
        return flat(jax.grad(network_loss)(params, {"x": x[None], "y": y[None]}))

    return jax.vmap(of_one)(jnp.asarray(EXAMPLES["x"]), jnp.asarray(EXAMPLES["y"]))


def covariance(params=PARAMS):
    return jnp.cov(per_example_gradients(params).T, bias=True)


def matrix(model, params=PARAMS):
    """The diffusion as a matrix, a column a noise."""
    operator = model.diffusion(0.0, params, None)
    return jax.vmap(lambda unit: flat(operator.mv(unit)))(jnp.eye(model.noise_size)).T


class TestWeakOrder:
    """E x^2 without Monte Carlo: for a linear equation its rate is read off the fields at x = 1."""

    rates = np.array([0.1, 0.05, 0.025, 0.0125])
    time = 2.0

    def errors(self, order, calculus="ito"):
        def of(h):
            model = sgd_sde(GAMMAS, h, order, calculus=calculus)
            one = jnp.ones(())
            noise = jnp.sum(matrix(model, one) ** 2)
            drift = model.drift(0.0, one, None)
            if calculus == "stratonovich":
                # d(x^2) = 2 x o dx, and Ito's correction of the noise c x is c^2 x / 2.
                return jnp.exp((2 * drift + 2 * noise) * self.time)
            return jnp.exp((2 * drift + noise) * self.time)

        modelled = np.array([of(h) for h in self.rates])
        exact = (1 - 2 * self.rates + self.rates**2 * 1.25) ** np.round(self.time / self.rates)
        return abs(modelled - exact)

    @pytest.mark.parametrize(
        ("order", "expected"),
        [(1, [3.5e-3, 1.8e-3, 9.1e-4, 4.6e-4]), (2, [4.4e-5, 1.3e-5, 3.6e-6, 9.2e-7])],
    )
    @pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
    def test_is_the_one_of_the_reference_values(self, order, expected, calculus):
        errors = self.errors(order, calculus)
        # Two digits are given.
        np.testing.assert_allclose(errors, expected, rtol=0.02)
        orders = observed_orders(self.rates, errors)
        assert abs(orders[-1] - order) < 0.1


class TestDiffusion:
    @pytest.mark.parametrize("micro_batch_size", [None, 5])
    def test_has_the_covariance_of_a_batch_s_gradient(self, micro_batch_size):
        h = 0.07
        model = sgd_sde(OBJECTIVE, h, micro_batch_size=micro_batch_size)
        found = matrix(model)
        np.testing.assert_allclose(found @ found.T, h / 3 * covariance(), rtol=1e-11, atol=1e-15)

    def test_is_that_of_enumerated_batches(self):
        # Every batch of two examples drawn with replacement, each as likely.
        gradients = per_example_gradients()
        means = (gradients[:, None] + gradients[None]).reshape(144, -1) / 2
        found = matrix(sgd_sde(OBJECTIVE, 1.0, batch_size=2))
        np.testing.assert_allclose(found @ found.T, jnp.cov(means.T, bias=True), rtol=1e-10,
                                   atol=1e-15)  # fmt: skip

    def test_is_blind_to_a_regulariser_of_the_parameters(self):
        ridge = regularized(OBJECTIVE, lambda p, batch: jnp.sum(flat(p) ** 2), 3.0)
        np.testing.assert_allclose(
            matrix(sgd_sde(ridge, 0.1)), matrix(sgd_sde(OBJECTIVE, 0.1)), rtol=1e-12, atol=1e-14
        )

    def test_is_square_root_in_the_learning_rate_when_vmapped(self):
        rates = jnp.array([0.01, 0.04])
        found = jax.jit(jax.vmap(lambda h: matrix(sgd_sde(OBJECTIVE, h))))(rates)
        np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-12)


class TestNoiseBasis:
    def test_holds_the_top_of_the_covariance(self):
        rank = 3
        basis = jax.jit(lambda p: noise_basis(OBJECTIVE, p, rank, 5))(PARAMS)
        values, vectors = np.linalg.eigh(covariance())
        np.testing.assert_allclose(basis.eigenvalues, values[::-1][:rank], rtol=1e-10)
        np.testing.assert_allclose(basis.trace, values.sum(), rtol=1e-12)
        model = sgd_sde(OBJECTIVE, 1.0, batch_size=1, noise_basis=basis.weights)
        assert model.noise_size == rank
        found = matrix(model)
        top = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T
        np.testing.assert_allclose(found @ found.T, top, atol=1e-7 * values[-1])

    def test_converges_to_the_whole(self):
        whole = matrix(sgd_sde(OBJECTIVE, 1.0))
        whole = whole @ whole.T
        # Eight parameters: a covariance of rank eight.
        full = noise_basis(OBJECTIVE, PARAMS, 8).weights
        misses = []
        for rank in (1, 3, 5, 8):
            found = matrix(sgd_sde(OBJECTIVE, 1.0, noise_basis=full[:, :rank]))
            misses.append(float(jnp.linalg.norm(found @ found.T - whole, 2)))
        assert misses == sorted(misses, reverse=True)
        np.testing.assert_allclose(
            misses[:3], np.linalg.eigvalsh(whole)[::-1][[1, 3, 5]], rtol=1e-6
        )
        assert misses[-1] < 1e-10 * misses[0]

    def test_has_no_rank_beyond_the_examples(self):
        with pytest.raises(ValueError, match="rank=12 must be a whole number from 1 to 11"):
            noise_basis(OBJECTIVE, PARAMS, 12)


class TestDrift:
    h = 0.3

    def modified(self, order, calculus):
        def loss(params):
            f = network_loss(params, EXAMPLES)
            g = jax.grad(lambda p: network_loss(p, EXAMPLES))(params)
            bent = jnp.sum(flat(g) ** 2) if order == 2 else 0.0
            noise = jnp.trace(covariance(params)) / 3 if calculus == "stratonovich" else 0.0
            return f + self.h / 4 * (bent + noise)

        return loss

    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
    def test_descends_the_modified_loss(self, order, calculus):
        model = sgd_sde(OBJECTIVE, self.h, order, calculus=calculus, micro_batch_size=5)
        found = jax.jit(model.drift)(0.0, PARAMS, None)
        expected = jax.grad(self.modified(order, calculus))(PARAMS)
        np.testing.assert_allclose(flat(found), -flat(expected), rtol=1e-11, atol=1e-14)

    @pytest.mark.parametrize("rank", [None, 2])
    def test_of_stratonovich_corrects_for_its_own_diffusion(self, rank):
        # By its definition, from the diffusion's Jacobian: - (1/2) sum_j (D c_j) c_j.
        basis = None if rank is None else noise_basis(OBJECTIVE, PARAMS, rank).weights
        ito = sgd_sde(OBJECTIVE, self.h, noise_basis=basis)
        other = sgd_sde(OBJECTIVE, self.h, noise_basis=basis, calculus="stratonovich")
        unravel = jax.flatten_util.ravel_pytree(PARAMS)[1]
        columns = lambda v: matrix(ito, unravel(v))  # noqa: E731
        here = jax.flatten_util.ravel_pytree(PARAMS)[0]
        jacobian = jax.jit(jax.jacfwd(columns))(here)
        correction = jnp.einsum("ijk,kj->i", jacobian, columns(here)) / 2
        difference = flat(ito.drift(0.0, PARAMS, None)) - flat(other.drift(0.0, PARAMS, None))
        np.testing.assert_allclose(difference, correction, rtol=1e-10, atol=1e-14)


class TestPrecision:
    def test_a_float32_state_stays_one(self):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        for calculus in ("ito", "stratonovich"):
            model = sgd_sde(OBJECTIVE, jnp.float64(0.1), 2, calculus=calculus)
            noise = jnp.ones(12, jnp.float32)
            moved = model.diffusion(0.0, params, None).mv(noise)
            assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype("float32")}

    @pytest.mark.usefixtures("float32")
    def test_in_single_precision(self):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
        data = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), EXAMPLES)
        objective = Objective(network_loss, data, with_replacement(3))
        found = matrix(sgd_sde(objective, 0.1), params)
        assert found.dtype == jnp.float32
        expected = np.cov(np.asarray(per_example_gradients(params)).T, bias=True)
        np.testing.assert_allclose(found @ found.T, 0.1 / 3 * expected, rtol=1e-3, atol=1e-6)

    def test_nan_params_give_nan(self):
        bad = {**PARAMS, "b": PARAMS["b"] * jnp.nan}
        assert jnp.isnan(flat(sgd_sde(OBJECTIVE, 0.1, 2).drift(0.0, bad, None))).any()
        assert jnp.isnan(flat(covariance_factor(OBJECTIVE, bad, jnp.arange(12.0)))).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "order=3 must be 1 or 2"),
        ({"calculus": "Ito"}, "calculus='Ito' must be 'ito' or 'stratonovich'"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1 must be positive"),
        ({"learning_rate": jnp.ones(2)}, "learning_rate must be a scalar"),
        ({"batch_size": 0}, "batch_size must be a positive integer; got 0"),
        ({"noise_basis": jnp.ones((5, 2))}, "needs a row for each of the 12 examples"),
        ({"objective": Objective(network_loss, EXAMPLES)}, "its sampling is 'full_batch'"),
        (
            {"objective": Objective(network_loss, EXAMPLES, shuffled_epochs(3))},
            "'shuffled_epochs', whose batches are not independent draws",
        ),
        ({"objective": Objective(lambda p, batch: 0.0)}, "has no data"),
    ],
)
def test_what_is_no_equation_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sgd_sde(**{"objective": OBJECTIVE, "learning_rate": 0.1} | options)
