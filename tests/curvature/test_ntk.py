"""The empirical neural tangent kernel, against a naive contraction of `jax.jacrev`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from driftlab import models
from driftlab.curvature.ntk import METHODS, ntk, ntk_costs
from driftlab.curvature.ntk_layers import weight_products
from driftlab.curvature.ntk_structured import contract, features, network

KEY = jax.random.key(0)
VECTORS = jax.random.normal(jax.random.key(1), (7, 5), float)
IMAGES = jax.random.normal(jax.random.key(2), (4, 4, 4, 2), float)
SEQUENCES = jax.random.normal(jax.random.key(3), (4, 3, 6), float)


def linen_model(model, inputs):
    params = models.initialize(model, KEY, inputs)
    # Biases away from 0, so that what they change is seen.
    return models.apply_function(model), jax.tree.map(lambda leaf: leaf + 0.1, params), inputs


def equinox_mlp():
    model = eqx.nn.MLP(5, 3, 8, 2, key=KEY, dtype=float)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, VECTORS


def nnx_mlp():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 8, rngs=rngs, param_dtype=float)
            self.norm = nnx.LayerNorm(8, rngs=rngs, param_dtype=float)
            self.second = nnx.Linear(8, 3, rngs=rngs, param_dtype=float)

        def __call__(self, x):
            return self.second(jax.nn.gelu(self.norm(self.first(x))))

    graph, params = nnx.split(Model(nnx.Rngs(0)))
    return lambda p, x: nnx.merge(graph, p)(x), params, VECTORS


def layer_norm():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(8, param_dtype=float)(x)
            x = linen.relu(linen.LayerNorm(param_dtype=float)(x))
            return linen.Dense(2, param_dtype=float)(x)

    return Model().apply, Model().init(KEY, VECTORS), VECTORS


def attention():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            heads = linen.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)
            return linen.Dense(3, param_dtype=float)(heads(x).mean(1))

    return Model().apply, Model().init(KEY, SEQUENCES), SEQUENCES


def normal(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape, float)


def shared_weight():
    params = {"w": normal(5, 5), "out": normal(5, 2)}
    return lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) @ p["out"], params, VECTORS


def tied_transpose():
    params = {"w": normal(5, 4), "b": normal(4)}
    return lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]) @ p["w"].T, params, VECTORS


def shared_bias():
    params = {"v": normal(4, 5), "w": normal(4, 4), "b": normal(4)}

    def apply(p, x):
        hidden = jnp.tanh(x @ p["v"].T + p["b"][None])
        return hidden @ p["w"] + p["b"][None]

    return apply, params, VECTORS


def product_used_twice():
    params = {"w": normal(5, 4), "b": normal(4), "scale": normal(4)}

    def apply(p, x):
        product = x @ p["w"]
        return jnp.sin(product + p["b"][None]) * product * p["scale"][None]

    return apply, params, VECTORS


def product_of_weights():
    params = {"first": normal(5, 4), "second": normal(4, 3), "b": normal(3)}
    return lambda p, x: x @ (p["first"] @ p["second"]) + p["b"][None], params, VECTORS


def one_output_weights():
    # A product of two leaves of one position each, and a bias of it.
    params = {"u": normal(4), "v": normal(4), "b": normal(1)}
    return lambda p, x: jnp.sin(x[:, :1] * (p["u"] @ p["v"] + p["b"])[None]), params, VECTORS


def grouped():
    params = {"heads": normal(2, 3, 4), "out": normal(2, 4, 3)}

    def apply(p, x):
        split = x.reshape(*x.shape[:2], 2, 3)
        hidden = jnp.tanh(jnp.einsum("ntgc,gcf->ntgf", split, p["heads"]))
        return jnp.einsum("ntgf,gfo->no", hidden, p["out"])

    return apply, params, SEQUENCES


def scanned():
    params = {"layers": normal(3, 5, 5), "out": normal(5, 2)}

    def apply(p, x):
        hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])
        return hidden @ p["out"]

    return apply, params, VECTORS


def rematerialized():
    params = {"w": normal(5, 8), "out": normal(8, 2)}
    block = jax.checkpoint(jax.jit(lambda w, x: jnp.tanh(x @ w)))
    return lambda p, x: block(p["w"], x) @ p["out"], params, VECTORS


def own_derivative():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    # A rule that is wrong on purpose: what the network declares is what counts.
    dense.defvjp(
        lambda w, x: (x @ w, (w, x)), lambda saved, g: (3.0 * saved[1].T @ g, g @ saved[0].T)
    )
    params = {"w": normal(5, 8), "out": normal(8, 2)}
    return lambda p, x: straight_through(dense(p["w"], x)) @ p["out"], params, VECTORS


def branching():
    params = {"w": normal(5, 4), "unused": normal(7)}

    def apply(p, x):
        hidden = x @ p["w"]
        return jax.lax.cond(hidden.sum() > 0, jnp.tanh, jnp.sin, hidden)

    return apply, params, VECTORS[:1]


CASES = {
    "mlp": lambda: linen_model(models.MLP((8, 6), 3), VECTORS),
    "relu_mlp": lambda: linen_model(models.MLP((8,), 2, activation="relu"), VECTORS),
    "two_outputs": lambda: linen_model(models.MLP((6,), 2), VECTORS),
    "cnn": lambda: linen_model(models.CNN(2, channels=(3,)), IMAGES),
    "cnn_lax": lambda: linen_model(models.CNN(2, channels=(3,), method="lax"), IMAGES),
    "two_layer": lambda: linen_model(models.TwoLayerReLU(20), VECTORS),
    "deep_linear": lambda: linen_model(models.DeepLinear((4, 4), 2), VECTORS),
    "equinox": equinox_mlp,
    "nnx": nnx_mlp,
    "layer_norm": layer_norm,
    "attention": attention,
    "shared_weight": shared_weight,
    "tied_transpose": tied_transpose,
    "shared_bias": shared_bias,
    "product_used_twice": product_used_twice,
    "product_of_weights": product_of_weights,
    "one_output_weights": one_output_weights,
    "grouped": grouped,
    "scanned": scanned,
    "rematerialized": rematerialized,
    "own_derivative": own_derivative,
    "branching": branching,
}


def naive(apply, params, inputs, other=None):
    def jacobian(x):
        leaves = jax.tree.leaves(jax.jacrev(lambda p: apply(p, x).reshape(len(x), -1))(params))
        return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)

    return jnp.einsum("iap,jbp->ijab", *map(jacobian, (inputs, inputs if other is None else other)))


def transposed(kernel):
    return kernel.T if kernel.ndim == 2 else kernel.transpose(1, 0, 3, 2)


def assert_close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * abs(expected).max())


# The products and Jacobian methods see a network only through `apply`: a few cases are enough.
GENERIC = ("mlp", "cnn", "equinox", "own_derivative", "scanned", "one_output_weights")


@pytest.mark.parametrize("case", CASES)
def test_all_methods_equal_the_naive_contraction(case):
    apply, params, inputs = CASES[case]()
    methods = METHODS if case in GENERIC else ("structured",)

    @jax.jit
    def kernels(params, inputs):
        symmetric = [ntk(apply, params, inputs, method=method) for method in methods]
        return symmetric, naive(apply, params, inputs)

    symmetric, expected = kernels(params, inputs)
    for kernel in symmetric:
        assert_close(kernel, expected)
        np.testing.assert_array_equal(kernel, transposed(kernel))


@pytest.mark.parametrize("case", ["grouped", "cnn_lax", "layer_norm"])
def test_the_mean_over_outputs_with_other_inputs(case):
    apply, params, inputs = CASES[case]()

    @jax.jit
    def kernels(params, inputs):
        mean = ntk(apply, params, inputs, inputs[:2], method="structured", trace_outputs=True)
        return mean, naive(apply, params, inputs, inputs[:2])

    mean, expected = kernels(params, inputs)
    assert_close(mean, jnp.einsum("ijaa->ij", expected) / expected.shape[2])


STRUCTURED = {
    # case: (weights in structured form, biases merged into them, other leaves)
    "mlp": (3, 3, 0),
    "equinox": (3, 3, 0),
    "nnx": (2, 2, 2),
    "layer_norm": (2, 2, 2),
    "rematerialized": (2, 0, 0),
    "shared_weight": (1, 0, 1),
    "tied_transpose": (0, 0, 2),
    "shared_bias": (2, 0, 1),
    "product_used_twice": (1, 0, 2),
    "own_derivative": (1, 0, 1),
    "scanned": (1, 0, 1),
    "branching": (1, 0, 0),
}


@pytest.mark.parametrize("case", STRUCTURED)
def test_layers_are_found_in_every_framework(case):
    apply, params, inputs = CASES[case]()
    leaves, tree = jax.tree.flatten(params)

    def single(leaves, example):
        return apply(jax.tree.unflatten(tree, leaves), example[None])[0]

    net = network(single, leaves, inputs[0], False, 100, 10)
    merged = sum(product.bias is not None for product in net.products)
    assert (len(net.products), merged, len(net.remaining)) == STRUCTURED[case]


@pytest.mark.parametrize(
    ("case", "num_products"),
    [("grouped", 2), ("product_of_weights", 2), ("cnn", 2), ("one_output_weights", 2)],
)
def test_the_structured_form_is_right_where_it_is_not_the_cheapest(case, num_products):
    apply, params, inputs = CASES[case]()
    leaves, tree = jax.tree.flatten(params)

    def single(leaves, example):
        return apply(jax.tree.unflatten(tree, leaves), example[None])[0]

    for traced in (False, True):
        net = network(single, leaves, inputs[0], traced, 100, 10)
        products = tuple(weight_products(net.program, len(leaves)))
        assert len(products) == num_products
        taken = {leaf for product in products for leaf in (product.leaf, product.bias)}
        rest = tuple(leaf for leaf in range(len(leaves)) if leaf not in taken)
        forced = net._replace(products=products, remaining=rest)

        @jax.jit
        def kernels(leaves, inputs, forced=forced):
            rows = features(forced, leaves, inputs)
            params = jax.tree.unflatten(tree, leaves)
            return contract(forced, rows, rows), naive(apply, params, inputs)

        gram, expected = kernels(leaves, inputs)
        outputs = expected.shape[2]
        mean = jnp.einsum("ijaa->ij", expected) / outputs
        blocks = expected.transpose(0, 2, 1, 3).reshape(gram.shape) if not traced else mean
        assert_close(gram, blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("batch_size", "trace_outputs"), [(3, False), (5, True)])
def test_batches_that_do_not_divide_the_examples(method, batch_size, trace_outputs):
    apply, params, inputs = CASES["two_outputs"]()
    other = inputs[:4] + 1.0
    settings = {"method": method, "batch_size": batch_size, "trace_outputs": trace_outputs}

    @jax.jit
    def kernels(params, inputs, other):
        both = ntk(apply, params, inputs, other, **settings)
        symmetric = ntk(apply, params, inputs, **settings)
        expected = naive(apply, params, inputs, other), naive(apply, params, inputs)
        return (both, symmetric), expected

    kernel_pair, expected_pair = kernels(params, inputs, other)
    np.testing.assert_array_equal(kernel_pair[1], transposed(kernel_pair[1]))
    for kernel, expected in zip(kernel_pair, expected_pair, strict=True):
        mean = jnp.einsum("ijaa->ij", expected) / expected.shape[2]
        assert_close(kernel, mean if trace_outputs else expected)


@pytest.mark.parametrize("method", METHODS)
def test_networks_with_one_output_and_no_axis_for_it(method):
    apply, params, inputs = CASES["two_layer"]()
    expected = naive(apply, params, inputs)[..., 0, 0]

    def scalar(p, x):
        return apply(p, x)[:, 0]

    @jax.jit
    def kernels(params, inputs):
        settings = {"inputs": inputs, "method": method}
        return [ntk(scalar, params, trace_outputs=t, **settings) for t in (False, True)]

    for kernel in kernels(params, inputs):
        assert_close(kernel, expected)


@pytest.mark.parametrize(
    ("method", "batch_size"), [("structured", 3), ("products", None), ("jacobian", None)]
)
def test_lanes_equal_single_calls(method, batch_size):
    apply, params, inputs = CASES["two_outputs"]()
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    scales = jnp.array([0.5, 1.5])

    def kernel(params, scale):
        # The scale is closed over: a tracer among the constants of the traced network.
        return ntk(
            lambda p, x: scale * apply(p, scale * x),
            params,
            inputs,
            method=method,
            batch_size=batch_size,
        )

    together = jax.jit(jax.vmap(kernel))(lanes, scales)
    single_lane = jax.jit(kernel)
    for lane in range(2):
        single = single_lane(jax.tree.map(lambda leaf, i=lane: leaf[i], lanes), scales[lane])
        assert_close(together[lane], single)


@pytest.mark.parametrize("case", ["two_outputs", "cnn_lax"])
def test_float32(case):
    apply, params, inputs = CASES[case]()
    expected = np.asarray(naive(apply, params, inputs))
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
        kernels = jax.jit(lambda p, x: [ntk(apply, p, x, method=method) for method in METHODS])
        for kernel in kernels(*single):
            assert kernel.dtype == jnp.float32
            assert_close(np.asarray(kernel), expected, 2e-6)


def test_half_precision_params_are_contracted_in_float32():
    apply, params, inputs = CASES["two_outputs"]()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, inputs))
    kernels = jax.jit(lambda p, x: [ntk(apply, p, x, method=method) for method in METHODS])
    for kernel in kernels(*half):
        assert kernel.dtype == jnp.float32
        assert_close(kernel.astype(float), naive(apply, params, inputs), 0.05)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_params_that_are_nan_give_nan(batch_size):
    apply, params, inputs = CASES["two_outputs"]()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    assert jnp.isnan(ntk(apply, broken, inputs, batch_size=batch_size)).all()


def test_the_kernel_has_a_gradient():
    apply, params, inputs = CASES["two_outputs"]()

    def entries(kernel):
        return jnp.sin(kernel).sum()

    @jax.jit
    def gradients(params):
        naively = jax.grad(lambda p: entries(naive(apply, p, inputs)))(params)
        return jax.grad(lambda p: entries(ntk(apply, p, inputs, batch_size=3)))(params), naively

    jax.tree.map(assert_close, *gradients(params))


def test_auto_takes_the_cheapest_from_shapes_alone():
    apply, params, inputs = CASES["mlp"]()
    shapes = jax.eval_shape(lambda: (params, inputs))
    costs = ntk_costs(apply, *shapes)
    assert costs == ntk_costs(apply, params, inputs)
    assert min(costs, key=lambda method: costs[method]) == "structured"
    np.testing.assert_array_equal(
        ntk(apply, params, inputs), ntk(apply, params, inputs, method="structured")
    )


def test_contraction_costs_are_those_of_the_formulas():
    inputs, width, outputs = 784, 256, 10
    model = models.MLP((width, width), outputs)
    images = jnp.zeros((32, inputs))
    params = models.initialize(model, KEY, images)
    apply = models.apply_function(model)
    with_bias = sum(leaf.size for leaf in jax.tree.leaves(params))
    costs, one = ntk_costs(apply, params, images), ntk_costs(apply, params, images[:1])
    pairs, features = 32 * 32, 32
    # From n = 1 and n = 32 the costs of features (linear in n) and of pairs (quadratic).
    layers = inputs + width + width + outputs**2 * (width + width + outputs)
    assert costs["structured"] - features * one["structured"] == (pairs - features) * layers
    jacobian = (pairs - features) * outputs**2 * with_bias
    assert costs["jacobian"] - features * one["jacobian"] == jacobian


def test_du_dt_is_minus_the_kernel_times_the_residual():
    # Du et al. (2019): d u / d t = -H (u - y) for L = 1/2 sum (u - y)^2, and H from the patterns.
    inputs = VECTORS / jnp.linalg.norm(VECTORS, axis=1, keepdims=True)
    model = models.TwoLayerReLU(50)
    params, apply = models.initialize(model, KEY, inputs), models.apply_function(model)
    targets = jnp.arange(7.0)

    def predict(p):
        return apply(p, inputs)[:, 0]

    @jax.jit
    def flow(params):
        gradient = jax.grad(lambda p: jnp.square(predict(p) - targets).sum() / 2)(params)
        outputs, velocity = jax.jvp(predict, (params,), (jax.tree.map(jnp.negative, gradient),))
        kernel = ntk(lambda p, x: apply(p, x)[:, 0], params, inputs)
        return velocity, kernel, -kernel @ (outputs - targets)

    velocity, kernel, expected = flow(params)
    assert_close(velocity, expected)
    patterns = np.asarray(inputs @ params["kernel"] >= 0, float)
    assert_close(kernel, np.asarray(inputs @ inputs.T) * (patterns @ patterns.T) / 50)


ERRORS = {
    "method": ({"method": "magic"}, "method='magic' is not known; choose from 'auto'"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number, 1 or more; got 0"),
    "other": ({"other": VECTORS[:, :4]}, r"other holds examples of shape \(4,\)"),
    "type": ({"other": VECTORS.astype(jnp.float32)}, "float32, but inputs"),
    "scalar": ({"inputs": jnp.zeros(())}, "inputs needs one entry or more along its first axis"),
    "empty": ({"inputs": VECTORS[:0]}, r"got shape \(0, 5\)"),
    "params": ({"params": {}}, "params hold no arrays"),
    "loss": ({"apply": lambda p, x: (x @ p["w"]).sum()}, r"must return .* got shape \(\)"),
    "rank": ({"apply": lambda p, x: (x @ p["w"])[..., None]}, r"got shape \(7, 2, 1\)"),
    "pair": ({"apply": lambda p, x: (x, x)}, "got tuple"),
    "integers": ({"apply": lambda p, x: jnp.ones((7, 2), int)}, "got int64"),
    "constant": ({"apply": lambda p, x: x}, "depend on none of the params"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    changes, message = ERRORS[case]
    arguments = {"apply": lambda p, x: x @ p["w"], "params": {"w": normal(5, 2)}, "inputs": VECTORS}
    with pytest.raises(ValueError, match=message):
        ntk(**(arguments | changes))


def test_integer_params_are_refused():
    with pytest.raises(TypeError, match="int64"):
        ntk(lambda p, x: x @ p["w"], {"w": jnp.ones((5, 2), int)}, VECTORS)
