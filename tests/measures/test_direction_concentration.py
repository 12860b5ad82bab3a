"""Directions of gradients: by hand, the identity with the noise scale, invariances, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.measures import direction_concentration as module
from driftlab.measures.direction_concentration import direction_values, gradient_directions
from driftlab.measures.direction_moments import stream_moments
from driftlab.measures.layerwise import layerwise
from tests.sweep import problems

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def snapshot():
    dynamics, params = problems.mlp({}, KEY)
    return dynamics.observe(dynamics.init(params, KEY)._replace(step=jnp.int32(3)))


def streamed(draw, count, like, at_once=1, key=KEY):
    """The values of `count` vectors drawn one by one."""
    keys = jax.random.split(key, count)
    positions = tuple(range(len(jax.tree.leaves(like))))

    @jax.jit
    def values(keys):
        moments = stream_moments(draw, keys, like, {"": positions}, at_once)[""]
        return direction_values(moments), moments

    return values(keys)


def by_hand(vectors):
    """The definitions, on all vectors at once, `(n, d)`."""
    vectors = np.asarray(vectors, np.float64)
    n, d = vectors.shape
    norms = np.linalg.norm(vectors, axis=1)
    resultant = np.linalg.norm((vectors / norms[:, None]).mean(0))
    cosines = vectors @ vectors.T / np.outer(norms, norms)
    cosine = (cosines.sum() - n) / (n * (n - 1))
    trace = vectors.var(0, ddof=1).sum()
    signal = (vectors.mean(0) ** 2).sum() - trace / n

    def banerjee(square):
        return np.sqrt(square) * (1 - square / d) / (1 - square)

    ratio = signal / trace
    return {
        "minibatch_resultant": resultant,
        "minibatch_mean_cosine": cosine,
        "minibatch_concentration": banerjee(resultant**2),
        "minibatch_concentration_unbiased": banerjee(max(cosine, 0)),
        "minibatch_concentration_floor": np.sqrt(n) / (n - 1),
        "minibatch_signal_to_noise": ratio,
        "minibatch_concentration_predicted": np.sqrt(max(ratio, 0) * (1 + ratio)),
        "minibatch_gradient_stochasticity": np.sqrt((vectors.mean(0) ** 2).sum() / trace),
        "minibatch_norm_stochasticity": norms.mean() / norms.std(ddof=1),
        "minibatch_zero_gradients": 0,
    }


def assert_values(values, expected, rtol=1e-10):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=rtol, atol=1e-13, err_msg=name)


def test_the_measure_is_the_definition_on_its_batches(snapshot):
    """Every gradient by hand, on the batches that (key, step) say; whole, layers, at once."""
    objective, count, size = snapshot.objective, 6, 16
    key = jax.random.fold_in(jax.random.fold_in(snapshot.state.key, module._DIRECTIONS), 3)

    @jax.jit
    @jax.vmap
    def gradient(key):
        indices = jax.random.randint(key, (size,), 0, objective.size, jnp.int32)
        batch = jax.tree.map(lambda array: array[indices], objective.data)
        return jax.grad(objective.loss)(snapshot.params, batch)

    gradients = gradient(jax.random.split(key, count))
    rows = {name: np.asarray(leaf).reshape(count, -1) for name, leaf in gradients.items()}
    expected = by_hand(np.concatenate(list(rows.values()), axis=1))
    for layer, part in rows.items():
        expected |= {f"{name}_{layer}": value for name, value in by_hand(part).items()}
    for at_once in (1, 3):
        measure = gradient_directions(count, layers=True, at_once=at_once)
        assert_values(jax.jit(lambda m=measure: m(snapshot))(), expected)
    one = jax.eval_shape(lambda: gradient_directions(count, 16, layers=["second"])(snapshot))
    assert {name for name in one if name.endswith("_second")} == {
        name for name in expected if name.endswith("_second")
    }


def test_layers_are_those_of_layerwise(snapshot):
    every = jax.jit(lambda: gradient_directions(4, layers=["second"])(snapshot))()
    by_layer = jax.jit(lambda: layerwise(gradient_directions(4), ["second"])(snapshot))()
    assert by_layer.keys() < every.keys()
    assert_values({name: every[name] for name in by_layer}, by_layer)


def test_concentration_is_signal_to_noise_in_high_dimension():
    """kappa / d = sqrt(b (1 + b)) for `g = G + xi`, isotropic xi, at b = 10, 1, .1, .01.

    The standard error of |G|^2 / T is `sqrt(4 b / (n d) + 2 (b^2 / n + 1 / n^2) / d)`; 5 are
    allowed.
    """
    dimension, count = 1000, 200
    ratios = jnp.array([10.0, 1.0, 0.1, 0.01])
    error = jnp.sqrt((4 * ratios / count + 2 * (ratios**2 / count + 1 / count**2)) / dimension)
    # d log sqrt(b (1 + b)) = (1 + 2b) / (2b (1 + b)) db; 1/d is what the norms' spread leaves.
    errors = 5 * error * (1 + 2 * ratios) / (2 * ratios * (1 + ratios)) + 1 / dimension

    @jax.jit
    @jax.vmap
    def values(b):
        mean = jnp.sqrt(b * dimension) * jnp.eye(1, dimension)[0]
        keys = jax.random.split(jax.random.fold_in(KEY, jnp.int32(1000 * b)), count)
        moments = stream_moments(
            lambda key: mean + jax.random.normal(key, (dimension,)), keys, mean, {"": (0,)}
        )
        return direction_values(moments[""])

    found = values(ratios)
    expected = jnp.sqrt(ratios * (1 + ratios))
    unbiased = found["minibatch_concentration_unbiased"]
    assert (abs(unbiased / expected - 1) < errors).all(), unbiased / expected
    # The same samples on both sides: what is left is that norms are not all the same, 1/d.
    predicted = found["minibatch_concentration_predicted"]
    np.testing.assert_allclose(unbiased, predicted, rtol=5e-3)
    # With the floor: R^2 -> (b + 1/n) / (1 + b).
    square = (ratios + 1 / count) / (1 + ratios)
    biased = jnp.sqrt(square) / (1 - square)
    assert (abs(found["minibatch_concentration"] / biased - 1) < errors).all()


@pytest.mark.parametrize("count", [10, 100])
def test_uniform_directions_sit_on_the_floor(count):
    dimension = 10_000
    values, _ = streamed(
        lambda key: jax.random.normal(key, (dimension,)), count, jnp.zeros(dimension)
    )
    floor = values["minibatch_concentration_floor"]
    np.testing.assert_allclose(floor, np.sqrt(count) / (count - 1), rtol=1e-14)
    # R^2 = 1/n up to 1/(n sqrt(d)) relatively.
    np.testing.assert_allclose(values["minibatch_concentration"], floor, rtol=0.02)
    assert abs(values["minibatch_mean_cosine"]) < 5 * np.sqrt(2 / dimension) / count
    assert values["minibatch_concentration_unbiased"] < 0.05


def test_rotations_and_scales_change_nothing():
    like = jnp.zeros(12)
    mean = jnp.arange(12.0)
    rotation = jnp.linalg.qr(jax.random.normal(KEY, (12, 12)))[0]

    def draw(key):
        return mean + 8 * jax.random.normal(key, (12,))

    def lengths(key):
        return jnp.exp(jax.random.normal(jax.random.fold_in(key, 1))) * draw(key)

    first, _ = streamed(draw, 30, like)
    turned, _ = streamed(lambda key: 1e-30 * rotation @ draw(key), 30, like)
    assert_values(turned, first, rtol=1e-9)
    stretched, _ = streamed(lengths, 30, like)
    for name in ("resultant", "mean_cosine", "concentration", "concentration_unbiased"):
        name = f"minibatch_{name}"
        np.testing.assert_allclose(stretched[name], first[name], rtol=1e-10)
    # Those that look at norms do change.
    assert stretched["minibatch_norm_stochasticity"] < 0.7 * first["minibatch_norm_stochasticity"]


def test_float32_keeps_one_minus_r_squared(float32):
    """Large batches, early: R is within 1e-8 of 1, where 1 - R^2 is 0 or 1.2e-7 in float32."""
    dimension, spread = 500, 1e-5

    def draw(key):
        return jnp.ones(dimension) + spread * jax.random.normal(key, (dimension,))

    values, moments = streamed(draw, 40, jnp.zeros(dimension))
    assert all(v.dtype == jnp.float32 for n, v in values.items() if "zero" not in n)
    vectors = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 40)), np.float64)
    expected = by_hand(vectors)
    np.testing.assert_allclose(moments.direction_variance, 1e-10 * 39 / 40, rtol=0.02)
    for name in ("concentration", "concentration_unbiased", "signal_to_noise"):
        np.testing.assert_allclose(
            values[f"minibatch_{name}"], expected[f"minibatch_{name}"], rtol=0.01
        )
    tiny, _ = streamed(lambda key: 1e-30 * draw(key), 40, jnp.zeros(dimension))
    np.testing.assert_allclose(
        tiny["minibatch_concentration"], values["minibatch_concentration"], rtol=0.01
    )


def test_zero_gradients_are_counted_and_left_out():
    like = jnp.zeros(20)

    def draw(key):
        vector = 1 + jax.random.normal(key, (20,))
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1)), vector, 0)

    values, _ = streamed(draw, 24, like)
    vectors = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 24)))
    directed = vectors[np.abs(vectors).sum(1) > 0]
    assert values["minibatch_zero_gradients"] == 24 - len(directed) > 5
    expected = by_hand(directed)
    for name in ("resultant", "mean_cosine", "concentration", "concentration_floor"):
        name = f"minibatch_{name}"
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-10)
    np.testing.assert_allclose(
        values["minibatch_norm_stochasticity"],
        np.linalg.norm(vectors, axis=1).mean() / np.linalg.norm(vectors, axis=1).std(ddof=1),
        rtol=1e-10,
    )
    none, _ = streamed(lambda key: jnp.zeros(20), 5, like)
    assert none["minibatch_zero_gradients"] == 5
    assert all(np.isnan(v) for n, v in none.items() if "zero" not in n)
    bad, _ = streamed(lambda key: jnp.full(20, jnp.nan), 5, like)
    assert np.isnan(bad["minibatch_concentration"])


def test_memory_does_not_grow_with_the_number_of_gradients():
    """256 gradients of 20,000 coordinates take 41 MB; streaming keeps a handful of vectors."""
    like = jnp.zeros(20_000)

    def moments(keys):
        return stream_moments(lambda key: jax.random.normal(key, (20_000,)), keys, like, {"": (0,)})

    compiled = jax.jit(moments).lower(jax.random.split(KEY, 256)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * 8 * 20_000


def test_lanes_and_missing_noise(snapshot):
    """Under vmap over params as alone; and on one example there is no noise: all agree."""
    measure = gradient_directions(4)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), snapshot.params)

    def at(params):
        return measure(snapshot._replace(state=snapshot.state._replace(params=params)))

    lanes = jax.jit(jax.vmap(at))(params)
    alone = jax.jit(at)(snapshot.params)
    assert_values({name: value[0] for name, value in lanes.items()}, alone)
    one = dataclasses.replace(
        snapshot.objective, data=jax.tree.map(lambda a: a[:1], snapshot.objective.data)
    )
    same = jax.jit(lambda: measure(snapshot._replace(objective=one)))()
    np.testing.assert_allclose(same["minibatch_resultant"], 1, rtol=1e-14)
    assert same["minibatch_concentration"] > 1e20


def test_directions_to_the_minimizers_balance_at_the_geometric_median():
    """Each minibatch pulls to a minimiser p_i: R(w) = |grad F(w)| / n, F = sum_i |p_i - w|.

    So R falls along the gradient flow of F, which is convex, and is 0 at the geometric median,
    not at the mean of the p_i.
    """
    points = jnp.exp(jax.random.normal(KEY, (40, 30)))

    def distances(w):
        return jnp.linalg.norm(points - w[None], axis=1).sum()

    def resultant(w):
        away = points - w[None]
        return jnp.linalg.norm((away / jnp.linalg.norm(away, axis=1, keepdims=True)).mean(0))

    @jax.jit
    def follow(w):
        def step(w, _):
            # Damped Newton-like steps of the flow: the Hessian's largest eigenvalue is below n / r.
            nearest = jnp.linalg.norm(points - w[None], axis=1).min()
            return w - nearest / 40 * jax.grad(distances)(w), resultant(w)

        return jax.lax.scan(step, w, length=2000)

    start = jnp.full(30, 20.0)
    np.testing.assert_allclose(
        resultant(start), jnp.linalg.norm(jax.grad(distances)(start)) / 40, rtol=1e-12
    )
    median, along = follow(start)
    assert (jnp.diff(along) < 1e-15).all()
    assert along[0] > 0.95
    assert along[-1] < 1e-12
    mean = points.mean(0)
    assert resultant(mean) > 0.05
    assert distances(median) < distances(mean)


def test_bad_arguments_are_refused(snapshot):
    with pytest.raises(ValueError, match=r"count=1 must be 2 or more"):
        gradient_directions(1)
    with pytest.raises(ValueError, match=r"count=5 .* multiple of at_once=2"):
        gradient_directions(5, at_once=2)
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer; got 0"):
        gradient_directions(4, 0)
    with pytest.raises(ValueError, match=r"layers must be a boolean or a sequence"):
        gradient_directions(4, layers="first")(snapshot)
    with pytest.raises(ValueError, match=r"layers=\['third'\]: there are \["):
        gradient_directions(4, layers=["third"])(snapshot)
    full = dataclasses.replace(snapshot.objective, sampling=driftlab.full_batch())
    with pytest.raises(ValueError, match=r"full batch, whose gradient has one direction"):
        gradient_directions(4)(snapshot._replace(objective=full))

    def line(params, batch):
        return (params["slope"] * batch).mean()

    objective = driftlab.Objective(line, jnp.ones(3), driftlab.with_replacement(1))
    dynamics = driftlab.descent(optax.sgd(0.1), objective)
    for params, layers, owner in (
        ({"slope": jnp.ones(())}, False, "params have"),
        ({"slope": jnp.ones(()), "other": jnp.ones(2)}, True, "the layer 'slope' has"),
    ):
        one = dynamics.observe(dynamics.init(params, KEY))
        with pytest.raises(ValueError, match=rf"{owner} one parameter.*is a sign"):
            gradient_directions(4, layers=layers)(one)
