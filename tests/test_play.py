"""Playing games: against hand-written rounds, the reference's Dirac GAN, and in sweeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import measures
from driftlab.game import Game, corrected
from driftlab.play import alternating, runge_kutta, simultaneous
from driftlab.regularizers.games import drift_correction


def divergence(params, batch):
    del batch
    return jnp.sum(jax.nn.softplus(params["phi"] * params["theta"]))


# The Dirac GAN of the reference: phi' = s(phi theta) theta, theta' = -s(phi theta) phi.
DIRAC = Game({"phi": lambda params, batch: -divergence(params, batch), "theta": divergence})
START = {"phi": jnp.ones(1), "theta": jnp.ones(1)}
RATES = {"phi": 0.1, "theta": 0.1}


def sgd(rates=RATES):
    return {player: optax.sgd(rate) for player, rate in rates.items()}


def radii(dynamics, steps):
    """The distance from the equilibrium after some numbers of steps."""
    state = dynamics.init(START, jax.random.key(0))
    step = jax.jit(dynamics.step)
    found = []
    for k in range(1, max(steps) + 1):
        state = step(state)
        if k in steps:
            found.append(jnp.hypot(state.params["phi"][0], state.params["theta"][0]))
    return np.array(found)


# rosca.md, 4.2, recomputed there in float64.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("simultaneous", [1.58697, 1.86819, 2.75609]),
        ("alternating", [1.44720, 1.43404, 1.43156]),
        ("cancelled", [1.41138, 1.40715, 1.41216]),
        ("twice", [1.25491, 0.99293, 0.41849]),
        ("five times", [0.87177, 0.32270, 0.00967]),
    ],
)
def test_the_dirac_gan_of_the_reference(name, expected):
    multiplier = {"cancelled": -1.0, "twice": -2.0, "five times": -5.0}.get(name)
    game = DIRAC
    if multiplier is not None:
        game = corrected(DIRAC, drift_correction(DIRAC, RATES, 0.0, multiplier, simultaneous=True))
    play = alternating if name == "alternating" else simultaneous
    np.testing.assert_allclose(radii(play(sgd(), game), [100, 300, 1000]), expected, atol=6e-6)


def test_a_round_is_its_updates_in_turn():
    txs = {"phi": optax.adam(0.1), "theta": optax.sgd(0.2, momentum=0.9)}
    dynamics = alternating(txs, DIRAC, order=("theta", "phi"), updates=(2, 3))
    state = dynamics.init(START, jax.random.key(0))
    params, inner = dict(START), {player: tx.init(START[player]) for player, tx in txs.items()}
    for _ in range(3):
        state = dynamics.step(state)
        for player in ("theta", "theta", "phi", "phi", "phi"):
            gradient = DIRAC.gradient(player, params, ())[1]
            updates, inner[player] = txs[player].update(gradient, inner[player], params[player])
            params[player] = optax.apply_updates(params[player], updates)
    for player in params:
        np.testing.assert_allclose(state.params[player], params[player], rtol=1e-13)


def batched_game():
    def pull(sign):
        return lambda params, batch: (
            sign * jnp.mean(batch["x"]) * jnp.sum(params["phi"] * params["theta"])
        )

    data = {"x": jnp.arange(1.0, 7.0)}
    return Game({"phi": pull(1.0), "theta": pull(-1.0)}, data, driftlab.with_replacement(2))


def test_every_update_of_a_round_has_a_batch_of_its_own():
    game, key = batched_game(), jax.random.key(1)
    rate = 0.01
    dynamics = alternating(sgd({"phi": rate, "theta": rate}), game, updates=(2, 1))
    state = dynamics.init(START, key)
    state = dynamics.step(dynamics.step(state))
    phi = theta = 1.0
    for k in range(2):
        for j in range(2):
            phi -= rate * float(game.batch(key, jnp.asarray(3 * k + j))["x"].mean()) * theta
        theta += rate * float(game.batch(key, jnp.asarray(3 * k + 2))["x"].mean()) * phi
    np.testing.assert_allclose([state.params["phi"][0], state.params["theta"][0]], [phi, theta])

    shared = alternating(
        sgd({"phi": rate, "theta": rate}), game, updates=(2, 1), fresh_batches=False
    )
    moved = shared.step(shared.init(START, key)).params
    mean = float(game.batch(key, jnp.asarray(0))["x"].mean())
    phi = 1 - 2 * rate * mean
    np.testing.assert_allclose([moved["phi"][0], moved["theta"][0]], [phi, 1 + rate * mean * phi])


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_runge_kutta_has_its_order_at_unequal_rates(method, order):
    # Gradient play on phi theta turns at the rate sqrt(a b).
    def distance(scale):
        rates = {"phi": 1.0 * scale, "theta": 2.0 * scale}
        game = Game(
            {
                "phi": lambda params, batch: jnp.sum(params["phi"] * params["theta"]),
                "theta": lambda params, batch: -jnp.sum(params["phi"] * params["theta"]),
            }
        )
        dynamics = runge_kutta(rates, game, method)
        state = dynamics.init(START, jax.random.key(0))
        state = jax.lax.fori_loop(0, round(1 / scale), lambda i, s: dynamics.step(s), state)
        turn = jnp.sqrt(2.0)
        exact = [
            jnp.cos(turn) - jnp.sin(turn) / turn,
            jnp.cos(turn) + turn * jnp.sin(turn),
        ]
        return jnp.hypot(state.params["phi"][0] - exact[0], state.params["theta"][0] - exact[1])

    errors = [float(jax.jit(lambda s=s: distance(s))()) for s in (0.05, 0.025)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.1)


def test_euler_is_simultaneous_sgd():
    first = simultaneous(sgd(), DIRAC)
    second = runge_kutta(RATES, DIRAC, "euler")
    np.testing.assert_allclose(radii(first, [20]), radii(second, [20]), rtol=1e-14)


def test_two_learning_rates_are_two_lane_axes():
    rates = [0.05, 0.1, 40.0]

    def build(hparams, key):
        del key
        txs = sgd({"phi": hparams["phi_rate"], "theta": hparams["theta_rate"]})
        bilinear = Game(
            {
                "phi": lambda params, batch: jnp.sum(params["phi"] * params["theta"]),
                "theta": lambda params, batch: -jnp.sum(params["phi"] * params["theta"]),
            }
        )
        return simultaneous(txs, bilinear), START

    grid = driftlab.Grid({"phi_rate": rates, "theta_rate": rates})
    result = driftlab.sweep(
        build, grid, steps=10, measures=[measures.loss, measures.gradient_norm], progress=False
    )
    # |xi|^2 grows by 1 + h^2 a step at equal rates.
    for rate in rates[:2]:
        lane = result.sel(phi_rate=rate, theta_rate=rate)
        np.testing.assert_allclose(lane.loss, (1 + rate**2) ** np.arange(11.0), rtol=1e-6)
        np.testing.assert_allclose(lane.gradient_norm**2 / 2, lane.loss, rtol=1e-6)
    assert result.verdict.sel(phi_rate=40.0, theta_rate=40.0) == "diverged"


def test_line_searches_are_given_the_players_own_loss():
    bowl = Game(
        {
            "phi": lambda params, batch: jnp.sum((params["phi"] - params["theta"]) ** 2),
            "theta": lambda params, batch: jnp.sum((params["theta"] - 2.0) ** 2),
        }
    )
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
    dynamics = alternating({"phi": search, "theta": optax.sgd(0.5)}, bowl)
    state = dynamics.init(START, jax.random.key(0))
    step = jax.jit(dynamics.step)
    for _ in range(20):
        state = step(state)
    np.testing.assert_allclose([state.params["phi"][0], state.params["theta"][0]], 2, atol=1e-4)


def test_what_needs_one_loss_is_told_that_there_is_none():
    snapshot_of = simultaneous(sgd(), DIRAC)
    snapshot = snapshot_of.observe(snapshot_of.init(START, jax.random.key(0)))
    with pytest.raises(ValueError, match="a game has no single loss"):
        measures.training()(snapshot)
    found = measures.player_losses(DIRAC)(snapshot)
    np.testing.assert_allclose(found["loss_theta"], np.log1p(np.e))
    np.testing.assert_allclose(found["loss_phi"], -np.log1p(np.e))


def test_parameters_that_do_not_fit_a_loss_name_the_player():
    game = Game({"phi": lambda params, batch: params["phi"] @ params["theta"], "theta": divergence})
    with pytest.raises(ValueError, match="the loss of player 'phi' cannot be evaluated"):
        simultaneous(sgd(), game).init(
            {"phi": jnp.ones(2), "theta": jnp.ones(3)}, jax.random.key(0)
        )


def test_players_must_match():
    with pytest.raises(ValueError, match=r"txs is given for \['phi'\].*\['theta'\] missing"):
        simultaneous({"phi": optax.sgd(0.1)}, DIRAC)
    with pytest.raises(TypeError, match="txs must map each player"):
        alternating(optax.sgd(0.1), DIRAC)  # type: ignore[arg-type]
    dynamics = simultaneous(sgd(), DIRAC)
    with pytest.raises(ValueError, match=r"params is given for"):
        dynamics.init({"phi": jnp.ones(1)}, jax.random.key(0))
    with pytest.raises(TypeError, match=r"\['theta'\] has dtype int"):
        dynamics.init({"phi": jnp.ones(1), "theta": jnp.ones(1, int)}, jax.random.key(0))
    with pytest.raises(ValueError, match="must name each of the players"):
        alternating(sgd(), DIRAC, order=("phi", "psi"))
    with pytest.raises(ValueError, match="'theta' is 0.0; it must be positive"):
        runge_kutta({"phi": 0.1, "theta": 0.0}, DIRAC)
    with pytest.raises(ValueError, match="method='rk3' must be one of euler, heun, rk4"):
        runge_kutta(RATES, DIRAC, "rk3")
