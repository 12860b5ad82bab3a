"""Stability of games: the reference's numbers, dense against matrix-free, verdicts against play."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows.game_equilibrium import game_stability
from driftlab.flows.game_spectra import (
    dense_jacobian,
    field_conditions,
    leading_eigenvalues,
    map_conditions,
    spectral_abscissa,
    spectral_radius,
)
from driftlab.flows.games import game_flow, game_step
from driftlab.game import Game, corrected
from driftlab.play import alternating, simultaneous
from driftlab.regularizers.games import drift_correction, symplectic_gradient_adjustment

ZERO = {"phi": jnp.zeros(1), "theta": jnp.zeros(1)}
FIRST, SECOND = ("phi", "theta"), ("theta", "phi")


def linear_game(e1, e2):
    """phi' = -e1 phi + theta, theta' = -phi - e2 theta."""
    return Game(
        {
            "phi": lambda params, batch: jnp.sum(
                e1 / 2 * params["phi"] ** 2 - params["phi"] * params["theta"]
            ),
            "theta": lambda params, batch: jnp.sum(
                e2 / 2 * params["theta"] ** 2 + params["phi"] * params["theta"]
            ),
        }
    )


def dirac_game():
    def divergence(params, batch):
        del batch
        return jnp.sum(jax.nn.softplus(params["phi"] * params["theta"]))

    return Game({"phi": lambda params, batch: -divergence(params, batch), "theta": divergence})


def equal(rate):
    return {"phi": rate, "theta": rate}


# rosca.md, 4.2; there in the losses' own time: a round is h of it.
@pytest.mark.parametrize(
    ("e", "simultaneous", "alternating"),
    [
        (0.09, (0.01838, 1.036408, False), (-0.18162, 1.016246, True)),
        (0.2, (-0.208, 1.092416, True), (-0.408, 1.071616, True)),
    ],
)
def test_traces_and_determinants_of_the_reference(e, simultaneous, alternating):
    h = 0.2
    report = game_stability(linear_game(e, e), equal(h), ZERO)
    plays = [(report.simultaneous, simultaneous), (report.alternating[FIRST], alternating)]
    for play, (trace, determinant, stable) in plays:
        found = field_conditions(play.modified.jacobian / h)
        np.testing.assert_allclose(found.trace, trace, atol=6e-7)
        np.testing.assert_allclose(found.determinant, determinant, atol=6e-7)
        assert bool(found.stable) == stable
        assert play.modified.verdict == play.rounds.verdict == ("stable" if stable else "unstable")
        assert bool(map_conditions(play.rounds.jacobian).stable) == stable
    np.testing.assert_allclose(report.continuous.eigenvalue / h, -e + 1j, rtol=1e-13)
    assert report.continuous.verdict == "stable"
    assert report.gradient_norm == 0


def test_moduli_of_the_reference():
    report = game_stability(linear_game(0.09, 0.09), equal(0.2), ZERO)
    np.testing.assert_allclose(report.simultaneous.rounds.margin + 1, 1.00216, atol=6e-6)
    for order in (FIRST, SECOND):
        np.testing.assert_allclose(report.alternating[order].rounds.margin + 1, 0.982, atol=1e-12)


def test_the_slip_of_the_published_notebook():
    # With +e2 in the theta row its stability cell is of another game than it simulates.
    h, e = 0.2, 0.09
    report = game_stability(linear_game(e, -e), equal(h), ZERO)
    found = field_conditions(report.simultaneous.modified.jacobian / h)
    np.testing.assert_allclose([found.trace, found.determinant], [0.19838, 1.00174], atol=6e-6)
    found = field_conditions(report.alternating[FIRST].modified.jacobian / h)
    np.testing.assert_allclose([found.trace, found.determinant], [-0.00162, 0.98190], atol=6e-6)


@pytest.mark.parametrize("h", [0.1, 0.5])
def test_the_dirac_gan(h):
    report = game_stability(dirac_game(), equal(h), ZERO)
    np.testing.assert_allclose(report.continuous.eigenvalue / h, 0.5j, atol=1e-14)
    modified = report.simultaneous.modified.eigenvalue / h
    np.testing.assert_allclose(modified, h / 8 + 0.5j, atol=1e-14)
    np.testing.assert_allclose(
        report.simultaneous.rounds.margin + 1, np.sqrt(1 + h**2 / 4), rtol=1e-14
    )
    for play in report.alternating.values():
        # The round is symplectic.
        np.testing.assert_allclose(np.linalg.det(play.rounds.jacobian), 1, rtol=1e-14)
        np.testing.assert_allclose(abs(play.rounds.eigenvalue), 1, rtol=1e-14)
        np.testing.assert_allclose(play.modified.eigenvalue.real, 0, atol=1e-14)
        assert play.rounds.verdict == play.modified.verdict == "marginal"
    if h == 0.1:
        eigenvalue = report.alternating[FIRST].modified.eigenvalue / h
        np.testing.assert_allclose(eigenvalue.imag, 0.49984, atol=6e-6)
    assert report.simultaneous.rounds.verdict == report.simultaneous.modified.verdict == "unstable"
    assert report.continuous.verdict == "marginal"


def vector_game(size=5):
    """A general-sum game of `3 size` parameters in nested trees, with an equilibrium at 0."""
    keys = jax.random.split(jax.random.key(0), 3)
    mix = jax.random.normal(keys[0], (size, 2 * size)) / size**0.5
    bend = jax.random.normal(keys[1], (2 * size,))
    # Different ones, or all the complex pairs would have one real part.
    friction = jnp.linspace(0.05, 0.4, size)

    def parts(params):
        return params["phi"], jnp.concatenate(jax.tree.leaves(params["theta"]))

    def phi_loss(params, batch):
        phi, theta = parts(params)
        return phi @ mix @ theta + friction @ phi**2 / 2 + jnp.sum(phi**4)

    def theta_loss(params, batch):
        phi, theta = parts(params)
        return -1.3 * phi @ mix @ theta + 0.05 * theta @ theta + jnp.sum(bend * theta**3)

    zeros = {"phi": jnp.zeros(size), "theta": {"b": jnp.zeros(size), "w": jnp.zeros(size)}}
    return Game({"phi": phi_loss, "theta": theta_loss}), zeros


ROUND = {"turns": ("theta", "phi"), "updates": (2, 3)}


def test_jacobians_are_those_of_the_flows_and_the_rounds():
    game, at = vector_game()
    rates = {"phi": 0.1, "theta": 0.07}
    report = game_stability(game, rates, at, updates={"phi": 3, "theta": 2}, turns=[SECOND])
    play = report.alternating[SECOND]
    expected = {
        "continuous": lambda y: game_flow(game, rates, 1)(0.0, y, None),
        "modified": lambda y: game_flow(game, rates, **ROUND)(0.0, y, None),
        "rounds": game_step(game, rates, **ROUND),
        "simultaneous": game_step(game, rates, simultaneous=True),
        "simultaneous modified": lambda y: game_flow(game, rates, simultaneous=True)(0.0, y, None),
    }
    found = {
        "continuous": report.continuous,
        "modified": play.modified,
        "rounds": play.rounds,
        "simultaneous": report.simultaneous.rounds,
        "simultaneous modified": report.simultaneous.modified,
    }
    for name, function in expected.items():
        np.testing.assert_allclose(
            found[name].jacobian, dense_jacobian(function, at), rtol=1e-12, atol=1e-14
        )
    values = np.linalg.eigvals(play.modified.jacobian)
    np.testing.assert_allclose(play.modified.margin, values.real.max(), rtol=1e-12)
    np.testing.assert_allclose(spectral_abscissa(play.modified.jacobian), play.modified.margin)
    radius = np.abs(np.linalg.eigvals(play.rounds.jacobian)).max()
    np.testing.assert_allclose(play.rounds.margin, radius - 1, rtol=1e-12)
    np.testing.assert_allclose(spectral_radius(play.rounds.jacobian), radius)


def test_without_matrices_the_same():
    game, at = vector_game(20)
    rates = {"phi": 0.3, "theta": 0.2}
    dense = game_stability(game, rates, at, turns=[FIRST])
    free = game_stability(game, rates, at, turns=[FIRST], dense_limit=0)
    pairs = [
        (dense.continuous, free.continuous),
        (dense.simultaneous.rounds, free.simultaneous.rounds),
        (dense.simultaneous.modified, free.simultaneous.modified),
        (dense.alternating[FIRST].rounds, free.alternating[FIRST].rounds),
        (dense.alternating[FIRST].modified, free.alternating[FIRST].modified),
    ]
    assert {first.verdict for first, _ in pairs} == {"stable", "unstable"}
    for first, second in pairs:
        assert second.jacobian is None
        assert first.verdict == second.verdict
        np.testing.assert_allclose(second.margin, first.margin, rtol=1e-6)
        assert second.residual < 1e-6


def test_several_leading_eigenvalues():
    # A normal matrix with known pairs: 0.4 +- 2i, 0.3, 0.2 +- 1i, and 40 that are to the left.
    blocks = [np.array([[0.4, 2.0], [-2.0, 0.4]]), np.array([[0.3]])]
    blocks += [np.array([[0.2, 1.0], [-1.0, 0.2]]), np.diag(-np.linspace(0.1, 3.0, 40))]
    size = sum(len(block) for block in blocks)
    matrix, at = np.zeros((size, size)), 0
    for block in blocks:
        matrix[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    matrix = jnp.asarray(turn @ matrix @ turn.T)

    def function(y):
        return {"y": matrix @ y["y"]}

    found = leading_eigenvalues(function, {"y": jnp.zeros(size)}, count=3)
    assert found.converged
    np.testing.assert_allclose(found.values.real, [0.4, 0.4, 0.3], atol=1e-8)
    np.testing.assert_allclose(abs(found.values.imag), [2, 2, 0], atol=1e-8)
    assert found.residuals.max() < 1e-7
    # One asked for, but its partner is as far to the right.
    assert len(leading_eigenvalues(function, {"y": jnp.zeros(size)}).values) == 2
    found = leading_eigenvalues(function, {"y": jnp.zeros(size)}, "modulus")
    np.testing.assert_allclose(abs(found.values[0]), 3.0, rtol=1e-8)


def test_what_did_not_converge_is_not_called_stable():
    game, at = vector_game(20)
    rates = {"phi": 1e-3, "theta": 1e-3}

    def field(y):
        return game_flow(game, rates, 1)(0.0, y, None)

    found = leading_eigenvalues(field, at, max_restarts=1, tolerance=1e-14)
    assert not found.converged


@pytest.mark.parametrize("kind", ["cancelled", "symplectic"])
def test_corrections_take_part(kind):
    game, h = dirac_game(), 0.1
    rates = equal(h)
    if kind == "cancelled":
        correction = drift_correction(game, rates, simultaneous=True)
    else:
        correction = symplectic_gradient_adjustment(game, h / 2)
    report = game_stability(corrected(game, correction), rates, ZERO)
    # The round is I + h J - (h^2 / 2) (-J^2) = I + h J + (h^2 / 2) J^2 with J^2 = -I / 4.
    modulus = np.hypot(1 - h**2 / 8, h / 2)
    np.testing.assert_allclose(report.simultaneous.rounds.margin, modulus - 1, rtol=1e-9)
    # The order-2 flow of the corrected game: what is left is O(h^3), with h for the time.
    assert abs(report.simultaneous.modified.margin) < h**4
    # It is what play does.
    txs = {player: optax.sgd(rate) for player, rate in rates.items()}
    dynamics = simultaneous(txs, corrected(game, correction))
    start = dynamics.init(ZERO, jax.random.key(0))
    played = dense_jacobian(lambda y: dynamics.step(start._replace(params=y)).params, ZERO)
    np.testing.assert_allclose(report.simultaneous.rounds.jacobian, played, atol=1e-14)


def test_verdicts_are_what_happens():
    game, at = vector_game(3)
    verdicts = set()
    for rate in (0.05, 0.6):
        report = game_stability(game, equal(rate), at, turns=[FIRST])
        txs = {player: optax.sgd(rate) for player in at}
        plays = [(simultaneous(txs, game), report.simultaneous.rounds)]
        plays.append((alternating(txs, game), report.alternating[FIRST].rounds))
        for dynamics, stability in plays:
            assert abs(stability.margin) > 1e-3
            state = dynamics.init(jax.tree.map(lambda leaf: leaf + 1e-8, at), jax.random.key(0))
            sizes = jax.jit(lambda s, d=dynamics: sizes_of(d, s))(state)
            grows = not sizes[1] < sizes[0]
            assert stability.verdict == ("unstable" if grows else "stable")
            verdicts.add(stability.verdict)
    assert verdicts == {"stable", "unstable"}


def sizes_of(dynamics, state):
    """Distances from 0 after 2,000 and after 4,000 rounds."""
    middle = jax.lax.fori_loop(0, 2000, lambda i, s: dynamics.step(s), state)
    end = jax.lax.fori_loop(0, 2000, lambda i, s: dynamics.step(s), middle)
    return [optax.tree.norm(s.params) for s in (middle, end)]


def test_conditions_in_lanes():
    def radius(rate):
        return spectral_radius(
            dense_jacobian(game_step(dirac_game(), equal(rate), simultaneous=False), ZERO)
        )

    rates = jnp.array([0.1, 1.0, 3.9, 4.5])
    found = jax.jit(jax.vmap(radius))(rates)
    np.testing.assert_allclose(found[:3], 1, rtol=1e-12)
    assert found[3] > 1.5
    matrices = np.random.default_rng(1).standard_normal((200, 2, 2))
    values = np.linalg.eigvals(matrices)
    np.testing.assert_array_equal(field_conditions(matrices).stable, values.real.max(-1) < 0)
    np.testing.assert_array_equal(map_conditions(matrices).stable, abs(values).max(-1) < 1)
    np.testing.assert_allclose(spectral_abscissa(matrices), values.real.max(-1), atol=1e-12)
    np.testing.assert_allclose(spectral_radius(matrices), abs(values).max(-1), rtol=1e-12)


def test_float32(float32):
    del float32
    report = game_stability(dirac_game(), equal(0.1), jax.tree.map(jnp.float32, ZERO))
    assert report.continuous.jacobian.dtype == np.float32
    assert report.alternating[FIRST].rounds.verdict == "marginal"
    assert report.simultaneous.rounds.verdict == "unstable"
    game, at = vector_game(20)
    at = jax.tree.map(jnp.float32, at)
    free = game_stability(game, {"phi": 0.3, "theta": 0.2}, at, turns=[FIRST], dense_limit=0)
    dense = game_stability(game, {"phi": 0.3, "theta": 0.2}, at, turns=[FIRST])
    np.testing.assert_allclose(
        free.simultaneous.rounds.margin, dense.simultaneous.rounds.margin, atol=1e-4
    )


@pytest.mark.parametrize("dense_limit", [0, 256])
def test_nan_is_unknown(dense_limit):
    game, at = vector_game(3)
    at["phi"] = at["phi"].at[0].set(jnp.nan)
    rates = {"phi": 0.1, "theta": 0.1}
    report = game_stability(game, rates, at, dense_limit=dense_limit, turns=[FIRST])
    assert report.simultaneous.rounds.verdict == report.continuous.verdict == "unknown"
    assert np.isnan(report.continuous.margin)


def test_bad_arguments():
    game = dirac_game()
    with pytest.raises(ValueError, match=r"\['theta'\] missing"):
        game_stability(game, {"phi": 0.1}, ZERO)
    with pytest.raises(ValueError, match="player 'theta' is 0.0; it must be positive"):
        game_stability(game, {"phi": 0.1, "theta": 0.0}, ZERO)
    with pytest.raises(ValueError, match="must name each of the players"):
        game_stability(game, equal(0.1), ZERO, turns=[("phi",)])
    with pytest.raises(ValueError, match="updates is given for"):
        game_stability(game, equal(0.1), ZERO, updates={"phi": 2})
    with pytest.raises(ValueError, match="dense_jacobian"):
        game_stability(game, equal(0.1), ZERO, dense_limit=1)
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.vmap(lambda h: game_stability(game, equal(h), ZERO).continuous.margin)(jnp.ones(2))
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*spectral_abscissa"):
        field_conditions(np.eye(3))
    with pytest.raises(ValueError, match=r"\(..., n, n\)"):
        spectral_radius(np.ones(3))
    with pytest.raises(ValueError, match="target='left'"):
        leading_eigenvalues(lambda y: y, jnp.ones(9), "left")  # type: ignore[arg-type]
