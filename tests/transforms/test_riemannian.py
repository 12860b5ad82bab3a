"""Riemannian optimisers: golden runs, flat space against optax, and what optax does to a chain."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import data, manifolds, measures
from driftlab.transforms.riemannian import (
    riemannian_adagrad,
    riemannian_adam,
    riemannian_amsgrad,
    riemannian_sgd,
    scale_by_riemannian_adagrad,
    scale_by_riemannian_adam,
)
from driftlab.transforms.riemannian_steps import (
    clip_by_riemannian_norm,
    retract,
    riemannian_gradient,
    riemannian_trace,
)

BALL, SPHERE = manifolds.poincare_ball(), manifolds.sphere()
FLAT, CURVED = manifolds.euclidean(), manifolds.hyperboloid()
# riemannian_a2grad.md, A4.2.
TARGETS = jnp.array([[0.6, 0.2, -0.1], [-0.3, 0.5, 0.2]])
START = jnp.array([[-0.5, -0.3, -0.4], [0.4, -0.5, -0.3]])


def pull(x, manifold=BALL, targets=TARGETS):
    """The reference's loss of two points that are pulled to two others and to each other."""
    squares = manifold.distance(x, targets) ** 2
    return squares[0] / 2 + 3 * squares[1] / 2 + manifold.distance(x[0], x[1]) ** 2 / 2


def run(tx, loss, params, steps):
    """The parameters after every step."""

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(body, (params, tx.init(params)), length=steps)[1]


def last(tx, loss, params, steps):
    return jax.tree.map(lambda leaf: leaf[-1], jax.jit(lambda: run(tx, loss, params, steps))())


class TestGoldenRuns:
    def test_the_problem(self):
        np.testing.assert_allclose(pull(START), 24.014933543245, rtol=1e-13)
        g = BALL.gradient(START, jax.grad(pull)(START))
        squares = BALL.inner(START, g, g)
        np.testing.assert_allclose(squares, [33.935569506, 148.574478624], rtol=1e-10)

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("exp", (-0.216222981436, -0.212473241745, -0.278209659696,
                     0.193950900395, -0.271346921831, -0.183764756316)),
            ("retraction", (-0.221122545555, -0.212800247972, -0.27868065958,
                            0.197575243888, -0.274940653886, -0.185154076638)),
        ],
    )  # fmt: skip
    def test_adam_after_20_steps_is_geoopt_s_to_12_digits(self, method, expected):
        found = last(riemannian_adam(0.05, BALL, method=method), pull, START, 20)
        np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=1e-12)

    def test_losses_after_60_steps_by_convention(self):
        """Geoopt's and this reference's eps is 1e-8, of Adagrad as well."""
        decays = {"b1": 0.9, "b2": 0.9, "method": "exp"}
        optimizers = {
            "adam": (riemannian_adam(0.05, BALL, **decays), 1.53336701520),
            "sgd": (riemannian_sgd(0.05, BALL, method="exp"), 1.38827246655),
            "adagrad": (riemannian_adagrad(0.05, BALL, eps=1e-8, method="exp"), 13.892619139),
        }
        for convention, value in (
            ("torch", 2.46374984954),
            ("paper", 3.02014202954),
            ("optax", 3.59184893886),
        ):
            tx = riemannian_amsgrad(0.05, BALL, convention=convention, **decays)
            optimizers[convention] = (tx, value)

        @jax.jit
        def losses():
            return [pull(run(tx, pull, START, 60)[-1]) for tx, _ in optimizers.values()]

        expected = [value for _, value in optimizers.values()]
        np.testing.assert_allclose(losses(), expected, rtol=4e-12, atol=5e-10)

    def test_adagrad_is_adam_nc_without_a_first_moment(self):
        def rate(t):
            return 0.3 / jnp.sqrt(t.astype(float) + 1)

        nc = riemannian_adam(
            rate, BALL, b1=0.0, b2=lambda t: 1 - 1 / t, eps=0.0, bias_correction=False
        )
        found = last(nc, pull, START, 60)
        expected = last(riemannian_adagrad(0.3, BALL), pull, START, 60)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_amsgrad_is_the_paper_s_figure(self):
        """Figure 1a: the momentum is carried along the step when that is made."""
        alpha, b1, b2 = 0.05, 0.9, 0.99

        def step(carry, _):
            x, tau, v, largest = carry
            g = BALL.gradient(x, jax.grad(pull)(x))
            m = b1 * tau + (1 - b1) * g
            v = b2 * v + (1 - b2) * BALL.inner(x, g, g)
            largest = jnp.maximum(largest, v)
            new = BALL.exp(x, -alpha * m / jnp.sqrt(largest)[:, None])
            return (new, BALL.parallel_transport(x, new, m), v, largest), new

        start = (START, jnp.zeros_like(START), jnp.zeros(2), jnp.zeros(2))
        expected = jax.jit(lambda: jax.lax.scan(step, start, length=40)[1][-1])()
        tx = riemannian_amsgrad(alpha, BALL, b1, b2, eps=0.0, method="exp")
        np.testing.assert_allclose(last(tx, pull, START, 40), expected, rtol=1e-12)

    def test_heavy_ball_carries_its_momentum_without_changing_its_length(self):
        def step(carry, _):
            x, m = carry
            m = 0.8 * m + BALL.gradient(x, jax.grad(pull)(x))
            new = BALL.exp(x, -0.01 * m)
            return (new, BALL.parallel_transport(x, new, m)), new

        expected = jax.lax.scan(step, (START, jnp.zeros_like(START)), length=30)[1][-1]
        tx = riemannian_sgd(0.01, BALL, momentum=0.8, method="exp")
        np.testing.assert_allclose(last(tx, pull, START, 30), expected, rtol=1e-12)
        trace = riemannian_trace(0.8, BALL)
        state = trace.update(START, trace.init(START), START)[1]
        moved = trace.update(jnp.zeros_like(START), state, -START)[1].trace
        kept = BALL.norm(-START, moved) / BALL.norm(START, START)
        np.testing.assert_allclose(kept, 0.8, rtol=1e-13)


FLAT_LOSS = data.problems.perturbed_rosenbrock()


class TestFlatSpace:
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (riemannian_sgd(0.05, FLAT), optax.sgd(0.05)),
            (riemannian_sgd(0.02, FLAT, 0.9), optax.sgd(0.02, 0.9)),
            (riemannian_sgd(0.02, FLAT, 0.9, nesterov=True), optax.sgd(0.02, 0.9, True)),
            (riemannian_adam(0.05, FLAT), optax.adam(0.05)),
            (riemannian_adagrad(0.05, FLAT), optax.adagrad(0.05, 0.0, eps=0.0)),
            (riemannian_amsgrad(0.05, FLAT, convention="optax"), optax.amsgrad(0.05)),
            (
                riemannian_amsgrad(0.05, FLAT, 0.8, 0.9, convention="paper"),
                optax.chain(
                    optax.scale_by_amsgrad(
                        0.8, 0.9, bias_correction_mu=False, bias_correction_nu=False
                    ),
                    optax.scale(-0.05),
                ),
            ),
        ],
        ids=["sgd", "momentum", "nesterov", "adam", "adagrad", "amsgrad", "amsgrad paper"],
    )
    def test_they_are_optax_s(self, ours, theirs):
        found, expected = (
            last(tx, FLAT_LOSS.loss, FLAT_LOSS.initial_params, 50) for tx in (ours, theirs)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)

    def test_rows_share_a_second_moment(self):
        tx = scale_by_riemannian_adam(manifolds.euclidean(1), eps=0.0)
        g = jnp.array([[3.0, 4.0], [0.3, 0.4]])
        updates, state = tx.update(g, tx.init(g), g)
        np.testing.assert_allclose(updates, [[0.6, 0.8], [0.6, 0.8]], rtol=1e-14)
        assert state.nu.shape == (2, 1)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(riemannian_sgd, 0.02, momentum=0.7, method="exp"),
        functools.partial(riemannian_adam, 0.05, b2=0.9, method="exp"),
        functools.partial(riemannian_adagrad, 0.3, method="exp"),
    ],
    ids=["sgd", "adam", "adagrad"],
)
def test_runs_in_ball_and_hyperboloid_are_one(make):
    there = manifolds.ball_to_hyperboloid
    inside = last(make(manifolds=BALL), pull, START, 40)

    def lifted(x):
        return pull(x, CURVED, there(TARGETS))

    outside = last(make(manifolds=CURVED), lifted, there(START), 40)
    np.testing.assert_allclose(manifolds.hyperboloid_to_ball(outside), inside, atol=1e-12)


FRAME = manifolds.stiefel()
MIXED = {"ball": BALL, "deep/frame": FRAME}
TREE = {
    "ball": START,
    "deep": {
        "frame": FRAME.random(jax.random.key(1), (4, 2), jnp.float64),
        "scale": jnp.array([0.5, -1.0, 2.0]),
    },
}
MATRIX = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))


def spin(frame):
    return jnp.sum((MATRIX @ frame) ** 2 * jnp.array([[1.0, 2.0]])) / 4


def flat(scale):
    return jnp.sum(jnp.cosh(scale))


def separate(tree):
    """Of three leaves that know nothing of each other."""
    return pull(tree["ball"]) + spin(tree["deep"]["frame"]) + flat(tree["deep"]["scale"])


class TestTrees:
    def test_every_leaf_moves_as_it_does_alone(self):
        def make(kinds):
            return riemannian_adam(0.05, kinds)

        found = last(make(MIXED), separate, TREE, 15)
        expected = {
            "ball": last(make(BALL), pull, TREE["ball"], 15),
            "deep": {
                "frame": last(make(FRAME), spin, TREE["deep"]["frame"], 15),
                "scale": last(optax.adam(0.05), flat, TREE["deep"]["scale"], 15),
            },
        }
        chex.assert_trees_all_close(found, expected, rtol=1e-12)
        manifolds.check_points(MIXED, found)

    def test_partition_and_masks(self):
        labels = {"ball": "curved", "deep": {"frame": "curved", "scale": "flat"}}
        tx = optax.partition(
            {"curved": riemannian_adam(0.05, MIXED), "flat": optax.adam(0.05)}, labels
        )
        expected = last(riemannian_adam(0.05, MIXED), separate, TREE, 15)
        chex.assert_trees_all_close(last(tx, separate, TREE, 15), expected, rtol=1e-12)
        mask = {"ball": True, "deep": {"frame": False, "scale": False}}
        masked = optax.masked(riemannian_sgd(0.05, {"ball": BALL}, 0.5), mask)
        grads = jax.grad(separate)(TREE)
        updates, _ = masked.update(grads, masked.init(TREE), TREE)
        alone = riemannian_sgd(0.05, BALL, 0.5)
        np.testing.assert_allclose(
            updates["ball"], alone.update(grads["ball"], alone.init(START), START)[0], rtol=1e-14
        )
        np.testing.assert_array_equal(updates["deep"]["scale"], grads["deep"]["scale"])

    def test_clipping_by_the_riemannian_norm(self):
        grads = manifolds.gradient(MIXED, TREE, jax.grad(separate)(TREE))
        norm = jnp.sqrt(manifolds.inner(MIXED, TREE, grads, grads))

        def clipped(limit, **options):
            tx = clip_by_riemannian_norm(limit, MIXED, **options)
            return tx.update(grads, tx.init(TREE), TREE)[0]

        chex.assert_trees_all_equal(clipped(1.01 * norm), grads)
        short = clipped(norm / 3)
        chex.assert_trees_all_close(short, jax.tree.map(lambda g: g / 3, grads), rtol=1e-13)
        each = clipped(6.0, per_factor=True)
        np.testing.assert_allclose(BALL.norm(START, each["ball"]), [5.82542440, 6.0], rtol=1e-8)
        limits = np.minimum(np.abs(grads["deep"]["scale"]), 6.0)
        np.testing.assert_allclose(np.abs(each["deep"]["scale"]), limits, rtol=1e-14)
        zero = jax.tree.map(jnp.zeros_like, grads)
        tx = clip_by_riemannian_norm(1.0, MIXED)
        chex.assert_trees_all_equal(tx.update(zero, tx.init(TREE), TREE)[0], zero)


@pytest.mark.parametrize("amsgrad", [None, "torch", "optax", "paper"])
def test_half_precision_does_not_round_the_decays_to_1(amsgrad):
    tx = scale_by_riemannian_adam(FLAT, amsgrad=amsgrad)
    params = jnp.array([0.5, -1.0], jnp.bfloat16)
    gradient = jnp.array([2.0, -0.25], jnp.bfloat16)
    updates, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    # 0.1 / sqrt(0.001) where nothing is corrected; bfloat16 has 8 bits.
    size = 0.1 / np.sqrt(0.001) if amsgrad == "paper" else 1.0
    expected = size * np.sign(np.asarray(gradient, float))
    np.testing.assert_allclose(np.asarray(updates, float), expected, rtol=2e-2)
    assert updates.dtype == state.mu.dtype == state.nu.dtype == jnp.bfloat16


class TestComposition:
    def test_schedules_and_injected_hyperparameters(self):
        def schedule(count):
            return 0.1 / (1 + count.astype(float))

        found = last(riemannian_adam(schedule, BALL), pull, START, 12)

        def by_hand():
            tx = optax.inject_hyperparams(riemannian_adam)(learning_rate=0.1, manifolds=BALL)
            x, state = START, tx.init(START)

            def body(i, carry):
                x, state = carry
                state.hyperparams["learning_rate"] = schedule(i)
                updates, state = tx.update(jax.grad(pull)(x), state, x)
                return x + updates, state

            return jax.lax.fori_loop(0, 12, body, (x, state))[0]

        np.testing.assert_allclose(jax.jit(by_hand)(), found, rtol=1e-13)

    def test_multi_steps_average_gradients_at_one_point(self):
        weights = jnp.array([0.5, 1.5, 0.2, 1.8])
        tx = optax.MultiSteps(riemannian_adam(0.05, BALL), 2)

        def body(carry, weight):
            x, state = carry
            updates, state = tx.update(jax.grad(lambda x: weight * pull(x))(x), state, x)
            return (optax.apply_updates(x, updates), state), x

        start = (START, tx.init(START))
        (found, _), path = jax.jit(lambda: jax.lax.scan(body, start, weights))()
        np.testing.assert_array_equal(path[1], START)
        expected = last(riemannian_adam(0.05, BALL), pull, START, 2)
        # optax adds the gradients up in single precision.
        np.testing.assert_allclose(found, expected, rtol=1e-8)

    def test_lanes_are_single_runs(self):
        def end(rate, momentum):
            return run(riemannian_sgd(rate, MIXED, momentum), separate, TREE, 10)

        rates, momenta = jnp.array([0.01, 0.03]), jnp.array([0.5, 0.9])
        lanes = jax.jit(jax.vmap(end))(rates, momenta)
        single = jax.jit(end)(rates[1], momenta[1])
        one = jax.tree.map(lambda leaf: leaf[1], lanes)
        chex.assert_trees_all_close(one, single, rtol=1e-11, atol=1e-13)

    def test_traced_curvature_is_a_lane_axis(self):
        def end(curvature):
            space = manifolds.poincare_ball(curvature)
            return run(riemannian_adam(0.05, space), lambda x: pull(x, space), START, 5)[-1]

        lanes = jax.jit(jax.vmap(end))(jnp.array([-0.5, -1.0]))
        expected = last(riemannian_adam(0.05, BALL), pull, START, 5)
        np.testing.assert_allclose(lanes[1], expected, rtol=1e-12)

    @pytest.mark.parametrize(
        "make",
        [
            functools.partial(riemannian_sgd, momentum=0.9, nesterov=True),
            riemannian_adam,
            riemannian_adagrad,
            riemannian_amsgrad,
        ],
    )
    def test_float32_stays_float32(self, make):
        """Under x64 with a float64 learning rate, which optax multiplies gradients by."""
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), TREE)
        tx = make(jnp.float64(0.01), MIXED)
        state = tx.init(params)
        updates, new = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        chex.assert_trees_all_equal_dtypes(state, new)
        chex.assert_trees_all_equal_dtypes(updates, params)


@pytest.mark.parametrize("method", ["exp", "retraction"])
def test_many_single_precision_steps_stay_on_the_sphere(float32, method):
    matrix = jnp.asarray(MATRIX + MATRIX.T, jnp.float32)
    x = SPHERE.random(jax.random.key(0), (8, 4), jnp.float32)

    def loss(x):
        return jnp.sum((x @ matrix) * x) + jnp.sum(jnp.sin(3 * x))

    tx = riemannian_sgd(0.01, SPHERE, 0.9, method=method)

    def body(_, carry):
        x, state = carry
        updates, state = tx.update(jax.grad(loss)(x), state, x)
        return optax.apply_updates(x, updates), state

    x, _ = jax.jit(lambda x: jax.lax.fori_loop(0, 20_000, body, (x, tx.init(x))))(x)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(np.asarray(x, np.float64), axis=-1), 1, atol=3e-7)


def test_descent_and_sweep():
    objective = driftlab.Objective(lambda params, batch: separate(params))

    def build(hparams, key):
        tx = optax.chain(
            riemannian_gradient(MIXED),
            clip_by_riemannian_norm(10.0, MIXED),
            scale_by_riemannian_adam(MIXED),
            optax.scale_by_learning_rate(hparams["learning_rate"]),
            retract(MIXED),
        )
        return driftlab.descent(tx, objective), TREE

    grid = driftlab.Grid({"learning_rate": [0.01, 0.05]})
    result = driftlab.sweep(build, grid, steps=6, measures=[measures.loss], progress=False)
    losses = result.loss.transpose("learning_rate", "step").values
    assert (np.diff(losses, axis=1) < 0).all()
    assert losses[1, -1] < losses[0, -1]


class TestBadInput:
    def test_points_that_are_off_are_named(self):
        tree = {"table": jnp.zeros((5, 2)).at[3].set(jnp.array([0.8, 0.7])), "bias": jnp.ones(2)}
        message = r"parameter 'table': 1 of 5 points are not on poincare_ball.*\(3,\).*project"
        with pytest.raises(ValueError, match=message):
            riemannian_adam(0.1, {"table": BALL}).init(tree)
        with pytest.raises(ValueError, match=r"parameter '\(the only one\)': 1 of 1"):
            riemannian_sgd(0.1, SPHERE).init(jnp.ones(3))
        with pytest.raises(ValueError, match=r"1 of 2 points.*\(1,\)"):
            riemannian_sgd(0.1, BALL).init(jnp.array([[0.1], [np.nan]]))

    def test_integers_are_no_points(self):
        with pytest.raises(TypeError, match="parameter 'table' has dtype int64; points of poinc"):
            riemannian_sgd(0.1, BALL).init({"table": jnp.zeros((2, 3), int)})

    def test_labels_that_are_not_there(self):
        with pytest.raises(ValueError, match=r"'tabel', which is not there; leaves: \['table'\]"):
            riemannian_adam(0.1, {"tabel": BALL}).init({"table": START})
        with pytest.raises(TypeError, match=r"manifolds\['table'\] must be a Manifold; got 'ball'"):
            riemannian_adam(0.1, {"table": "ball"}).init({"table": START})
        with pytest.raises(TypeError, match="must be a Manifold or a mapping"):
            riemannian_adam(0.1, "ball").init({"table": START})

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: manifolds.poincare_ball(1.0), "curvature=1.0 must be negative"),
            (lambda: manifolds.hyperboloid(0.0), "curvature=0.0 must be negative"),
            (lambda: manifolds.poincare_ball(jnp.nan), "must be negative"),
            (lambda: manifolds.poincare_ball(margin=1.0), "margin=1.0 must lie between"),
            (lambda: manifolds.stiefel("flat"), "metric='flat' must be one of"),
            (lambda: manifolds.stiefel(retraction="exp"), "retraction='exp' must be one of"),
            (lambda: manifolds.euclidean(-1), "point_ndim=-1 must be 0 or more"),
            (lambda: manifolds.product([BALL], [2, 3]), r"sizes=\(2, 3\) must give"),
            (lambda: manifolds.product([FRAME], [2]), "two or more"),
            (lambda: retract(BALL, "geodesic"), "method='geodesic' must be one of"),
            (lambda: riemannian_sgd(0.1, BALL, method="log"), "method='log' must be one of"),
            (
                lambda: riemannian_amsgrad(0.1, BALL, convention="keras"),
                "convention='keras' must be",
            ),
            (lambda: scale_by_riemannian_adam(BALL, b2=lambda t: 1 - 1 / t), "constant b1 and b2"),
            (lambda: clip_by_riemannian_norm(0.0, BALL), "max_norm=0.0 must be positive"),
            (lambda: manifolds.assign(FRAME, jnp.ones(3)), "has 2 axes"),
        ],
    )
    def test_wrong_arguments(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    @pytest.mark.parametrize(
        "tx",
        [
            riemannian_gradient(BALL),
            riemannian_trace(0.9, BALL),
            clip_by_riemannian_norm(1.0, BALL),
            scale_by_riemannian_adam(BALL),
            scale_by_riemannian_adagrad(BALL),
            retract(BALL),
        ],
    )
    def test_updates_need_params(self, tx):
        with pytest.raises(ValueError, match="needs params"):
            tx.update(START, tx.init(START))
