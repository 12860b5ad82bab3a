"""What is refused before anything is compiled; the checks of a solve are in test_solve.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.hyperparameters import check_decay, check_positive


@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, np.float32(-1), jnp.array(0.0)])
def test_a_number_that_is_not_positive_is_named(value):
    with pytest.raises(ValueError, match=rf"^learning_rate={float(value)} must be positive and"):
        check_positive("learning_rate", value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, np.nan])
def test_a_decay_that_does_not_fade_is_named(value):
    with pytest.raises(ValueError, match=rf"^momentum={float(value)} must be at least 0 and less"):
        check_decay("momentum", value)


@pytest.mark.parametrize("check", [check_positive, check_decay])
def test_one_number_is_asked_for(check):
    with pytest.raises(ValueError, match=r"^b1 must be a scalar; got shape \(2,\). Several make"):
        check("b1", jnp.full(2, 0.5))
    with pytest.raises(ValueError, match="^b1 must be a number, not a schedule; got <function"):
        check("b1", optax.constant_schedule(0.5))
    with pytest.raises(ValueError, match=r"^b1 must be a scalar"):
        jax.vmap(lambda value: check("b1", value))(jnp.full((2, 3), 0.5))


@pytest.mark.parametrize("check", [check_positive, check_decay])
def test_what_is_in_range_or_traced_passes(check):
    for value in (0.5, np.float32(0.5), jnp.array(0.5)):
        check("b1", value)

    @jax.vmap
    def traced(value):
        check("b1", value)
        return value

    traced(-jnp.ones(2))
