import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models

KEY = jax.random.key(0)

NEEDED = {"mlp": {"widths": (4,)}, "deep_linear": {"widths": (4,)}, "two_layer_relu": {"width": 4}}


@pytest.mark.parametrize("name", models.names())
def test_every_model_makes_the_outputs_asked_for_in_the_type_of_its_inputs(name):
    model = models.create(name, 3, **NEEDED.get(name, {}))
    apply = models.apply_function(model)
    for dtype in (jnp.float32, jnp.float64):
        inputs = jnp.zeros((2, 12, 12, 1), dtype)

        def run(inputs=inputs):
            params = models.initialize(model, KEY, inputs)
            return params, apply(params, inputs)

        params, outputs = jax.eval_shape(run)
        assert outputs.shape == (2, 3)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {jnp.dtype(dtype)}


def test_initialize_returns_bare_params_that_follow_the_key():
    model = models.create("mlp", 2, widths=(3,))
    inputs = np.ones((5, 4), np.float32)
    params = models.initialize(model, KEY, inputs)
    assert set(params) == {"layer_0", "layer_1"}
    again = models.initialize(model, KEY, inputs[2:])
    other = models.initialize(model, jax.random.key(1), inputs)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.array_equal(params["layer_0"]["kernel"], other["layer_0"]["kernel"])


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("resnt", {}, "'resnt': did you mean resnet"),
        ("zzz", {}, "known: cnn, deep_linear"),
        ("mlp", {"width": 3, "widths": (3,)}, "does not take width; its attributes are widths"),
        ("mlp", {}, "'mlp' needs widths"),
    ],
)
def test_create_errors(name, attributes, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, 10, **attributes)


def test_initialize_refuses_integers_and_empty_batches():
    model = models.create("mlp", 2, widths=(3,))
    with pytest.raises(ValueError, match="floating-point inputs.*uint8"):
        models.initialize(model, KEY, np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match=r"at least one example.*\(0, 4\)"):
        models.initialize(model, KEY, np.zeros((0, 4)))
