import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import transforms


def test_names_are_optax_optimizers_that_take_a_learning_rate():
    names = transforms.names()
    assert {"sgd", "adam", "nadamw", "lbfgs", "contrib.muon"} <= set(names)
    assert not [name for name in names if name.startswith("scale_by")]
    assert "chain" not in names


def test_arguments_are_fixed_and_the_rest_stay_open():
    factory = transforms.by_name("sgd", momentum=0.5)
    named, plain = factory(learning_rate=0.1, nesterov=True), optax.sgd(0.1, 0.5, True)
    params, gradient = jnp.ones(3), jnp.arange(3.0)
    ours, theirs = named.init(params), plain.init(params)
    for _ in range(3):
        update, ours = named.update(gradient, ours, params)
        expected, theirs = plain.update(gradient, theirs, params)
        np.testing.assert_array_equal(update, expected)


def test_module_and_function():
    assert transforms.by_name("optax:adam", b1=0.5).func is optax.adam


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adm", {}, "no optimizer 'adm': did you mean adam"),
        ("zzzzzz", {}, "known: adabelief"),
        ("sgd", {"b1": 0.9}, "'sgd' does not take b1; it takes learning_rate, momentum"),
        ("optax:nothing", {}, "module 'optax' has no 'nothing'"),
        ("nowhere:f", {}, "cannot import 'nowhere'"),
        ("optax:__name__", {}, "is not a function"),
        ("optax:clip", {}, "does not take learning_rate"),
    ],
)
def test_errors_say_what_there_is(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        transforms.by_name(name, **arguments)
