"""Row by row updates: equal to dense ones where they must be, lazy where they may be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, manifolds, measures, sweep, transforms
from driftlab.row_dynamics import row_descent

BALL = manifolds.poincare_ball()
ROWS = 9
ALL = jnp.arange(ROWS)


@pytest.fixture
def table():
    return 0.3 * jax.random.normal(jax.random.key(0), (ROWS, 3)).clip(-1, 1)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, 0.9),
    "adam": optax.adam(0.1),
    "scheduled": optax.adam(optax.linear_schedule(0.1, 0.0, 5)),
    "rsgd": transforms.riemannian_sgd(0.1, BALL, 0.9),
    "radam": transforms.riemannian_adam(0.1, BALL, method="exp"),
    "ramsgrad": transforms.riemannian_amsgrad(0.1, BALL),
    "radagrad": transforms.riemannian_adagrad(0.1, BALL),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_rows_at_once_are_the_dense_update(name, table):
    tx = OPTIMIZERS[name]
    rows = transforms.by_row(tx)
    step_rows, step_dense = jax.jit(rows.update), jax.jit(tx.update)
    dense, dense_state = table, tx.init(table)
    sparse, sparse_state = table, rows.init(table)
    for step in range(4):
        gradient = jnp.sin(dense * (step + 1))
        updates, dense_state = step_dense(gradient, dense_state, dense)
        dense = optax.apply_updates(dense, updates)
        # In another order, two halves of one row's gradient in two places.
        order = jnp.flip(jnp.concatenate([ALL, ALL[:2]]))
        halves = jnp.ones(ROWS).at[:2].set(0.5)[order][:, None]
        sparse, sparse_state = step_rows(gradient[order] * halves, sparse_state, sparse, order)
        np.testing.assert_allclose(sparse, dense, rtol=1e-13, atol=1e-15)
    assert not sparse_state.scratch.any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_are_not_named_stay_with_their_moments(name, table):
    rows = transforms.by_row(OPTIMIZERS[name])
    state = rows.init(table)
    update = jax.jit(rows.update)
    moved, state = update(jnp.ones((ROWS, 3)), state, table, ALL)
    named = jnp.array([[2, 5], [5, 7]])
    after, later = update(jnp.ones((2, 2, 3)), state, moved, named)
    untouched = np.setdiff1d(ALL, named)
    np.testing.assert_array_equal(after[untouched], moved[untouched])
    assert (after[named.ravel()] != moved[named.ravel()]).any()
    for old, new in zip(jax.tree.leaves(state.inner), jax.tree.leaves(later.inner), strict=True):
        if old.ndim:
            np.testing.assert_array_equal(new[untouched], old[untouched])
        else:
            assert new == old + 1  # the count is the table's


def test_a_tree_of_tables(table):
    tx = optax.adam(0.1)
    tables = {"points": table, "bias": jnp.zeros((ROWS,))}
    rows = transforms.by_row(tx)
    gradients = {"points": jnp.ones((2, 3)), "bias": jnp.ones((2,))}
    after, _ = rows.update(gradients, rows.init(tables), tables, jnp.array([1, 1]))
    # The first step of Adam is its rate, whatever the gradient.
    np.testing.assert_allclose(after["bias"][1], -0.1, rtol=1e-7)
    np.testing.assert_allclose(after["points"][1], table[1] - 0.1, rtol=1e-7)
    np.testing.assert_array_equal(after["points"][2:], table[2:])


def pull(rows, target):
    return jnp.mean(jnp.sum((rows - target[..., None]) ** 2, axis=-1))


def draw(key, step):
    indices = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, ROWS)
    return indices, jnp.ones(4) * 0.2


def test_row_descent_is_descent_for_an_optimizer_without_memory(table):
    dynamics = row_descent(optax.sgd(0.3), pull, draw)
    state = dynamics.init(table, jax.random.key(1))
    dense = table
    for k in range(3):
        indices, target = draw(jax.random.key(1), k)
        value, gradient = jax.value_and_grad(lambda t: pull(t[indices], target))(dense)  # noqa: B023
        snapshot = dynamics.observe(state)
        np.testing.assert_allclose(snapshot.value, value, rtol=1e-14)
        np.testing.assert_allclose(snapshot.gradient, gradient, rtol=1e-12, atol=1e-16)
        dense = dense - 0.3 * gradient
        state = snapshot.next_state
        np.testing.assert_allclose(state.params, dense, rtol=1e-13)
    assert int(state.step) == 3


def test_row_descent_in_a_sweep(table):
    def build(hparams, key):
        tx = transforms.riemannian_adam(hparams["learning_rate"], BALL)
        return row_descent(tx, pull, draw), table

    grid = Grid({"learning_rate": [0.01, 0.05]})
    found = sweep(
        build, grid, 30, measures=[measures.loss], record_every=10, progress=False, lanes="vmap"
    )
    alone = sweep(
        build, grid, 30, measures=[measures.loss], record_every=10, progress=False, lanes="map"
    )
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-9)
    assert (found.loss.isel(step=-1) < found.loss.isel(step=0)).all()


@pytest.mark.parametrize("shape", [(), (ROWS + 1,)])
def test_arrays_of_other_lengths_are_no_table(table, shape):
    with pytest.raises(ValueError, match=r"same number of rows; got shapes \[\("):
        transforms.by_row(optax.adam(0.1)).init({"points": table, "bias": jnp.zeros(shape)})


def test_integers_are_no_table():
    with pytest.raises(TypeError, match="dtype int"):
        row_descent(optax.sgd(0.1), pull, draw).init(jnp.zeros((3, 2), int), jax.random.key(0))
