import jax
import jax.numpy as jnp
import numpy as np
import optax

from driftlab import Objective, descent, fixed_order, measures, regularized

DATA = np.arange(6.0)


def test_loss_is_without_and_value_with_the_regularizer():
    objective = Objective(
        lambda params, batch: jnp.mean((params - batch) ** 2), DATA, fixed_order(2)
    )
    objective = regularized(objective, lambda params, _: params**4, 0.5)
    dynamics = descent(optax.sgd(0.1), objective)
    state = dynamics.init(jnp.array(3.0), jax.random.key(0))
    for step in range(3):
        snapshot = dynamics.observe(state._replace(step=jnp.int32(step)))
        loss = np.mean((3.0 - DATA[2 * step : 2 * step + 2]) ** 2)
        np.testing.assert_allclose(measures.loss(snapshot), loss, rtol=1e-14)
        np.testing.assert_allclose(measures.objective_value(snapshot), loss + 40.5, rtol=1e-14)
