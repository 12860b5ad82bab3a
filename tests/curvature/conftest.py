"""Dense matrices of every case, computed once, by routes that share nothing with the operators."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import curvature
from tests.curvature.cases import CASES, LARGE, SPECTRA, matrix_with, quick_jit


class Matrices(NamedTuple):
    """`dense` and `operators`: name -> `(n, n)`, the latter column by column."""

    dense: dict
    operators: dict


def columns(operator, unravel, size):
    """The matrix of an operator on trees, from its products with unit vectors."""
    return jax.vmap(lambda v: ravel_pytree(operator.mv(unravel(v)))[0])(jnp.eye(size)).T


def derivatives(case, vector, unravel):
    """What the dense matrices are made of: Hessians, and Jacobians in reverse mode."""
    found = {"hessian": jax.hessian(lambda v: case.loss(unravel(v), case.data))(vector)}
    if not case.examples:
        return found

    def loss_of_one(v, example):
        return case.loss(unravel(v), jax.tree.map(lambda a: a[None], example))

    found["gradients"] = jax.vmap(jax.grad(loss_of_one), (None, 0))(vector, case.data)
    if case.model is None:
        return found
    outputs, pull = jax.vjp(lambda v: case.model(unravel(v), case.data), vector)
    found["outputs"] = outputs
    cotangents = jnp.eye(outputs.size).reshape(-1, *outputs.shape)
    found["jacobian"] = jax.vmap(pull)(cotangents)[0]
    curved = jax.hessian(lambda o: case.output_loss(o.reshape(outputs.shape), case.data))
    found["output_hessian"] = curved(outputs.ravel())
    return found


def dense_matrices(case, parts):
    """The matrices by definition, in NumPy."""
    found = {"hessian": parts["hessian"]}
    if "gradients" in parts:
        gradients = parts["gradients"]
        found["empirical_fisher"] = gradients.T @ gradients / case.examples
    if "jacobian" not in parts:
        return found
    jacobian, outputs = parts["jacobian"], parts["outputs"]
    found["gauss_newton"] = jacobian.T @ parts["output_hessian"] @ jacobian
    fisher = np.zeros_like(found["hessian"])
    for rows, logits in zip(jacobian.reshape(*outputs.shape, -1), outputs, strict=True):
        if case.family == "gaussian":  # E[s s^T] over a residual of unit variance
            fisher += rows.T @ rows / case.examples
            continue
        probabilities = np.exp(logits) / np.exp(logits).sum()
        for label, probability in enumerate(probabilities):
            score = rows.T @ (np.eye(logits.size)[label] - probabilities)
            fisher += probability * np.outer(score, score) / case.examples
    found["fisher"] = fisher
    return found


def operator_matrices(case, vector, unravel):
    """From this package's operators, whole and in micro-batches."""
    params, size = unravel(vector), vector.size
    found = {}
    for batch_size in (None, 4) if case.examples else (None,):
        suffix = "" if batch_size is None else "_in_batches"
        made = {"hessian": curvature.hessian(case.loss, params, case.data, batch_size)}
        if case.examples:
            made["empirical_fisher"] = curvature.empirical_fisher(
                case.loss, params, case.data, batch_size
            )
        if case.model is not None:
            made["gauss_newton"] = curvature.gauss_newton(
                case.model, case.output_loss, params, case.data, batch_size
            )
            made["fisher"] = curvature.fisher(
                case.model, case.family, params, case.data, batch_size
            )
        for name, operator in made.items():
            found[name + suffix] = columns(operator, unravel, size)
    return found


@pytest.fixture(scope="session")
def matrices_of():
    """`case name -> Matrices`, each compiled at most once a session."""

    @functools.cache
    def of(name):
        case = CASES[name]
        vector, unravel = ravel_pytree(case.params)
        both = quick_jit(
            lambda v: (derivatives(case, v, unravel), operator_matrices(case, v, unravel))
        )
        parts, operators = jax.tree.map(np.asarray, both(vector))
        return Matrices(dense_matrices(case, parts), operators)

    return of


@pytest.fixture(scope="session")
def stack(matrices_of):
    """Names, and symmetric matrices `(cases, 28, 28)`: the Hessians, and the spectra."""
    hessians = [matrices_of(name).dense["hessian"] for name in LARGE]
    gauss_newtons = [matrices_of(name).dense["gauss_newton"] for name in ("cnn", "rank_deficient")]
    names = [*LARGE, "gauss_newton_cnn", "gauss_newton_rank_deficient", *SPECTRA]
    spectra = [np.asarray(matrix_with(spectrum)) for spectrum in SPECTRA.values()]
    matrices = np.stack([*hessians, *gauss_newtons, *spectra])
    return names, jnp.asarray((matrices + matrices.transpose(0, 2, 1)) / 2)
