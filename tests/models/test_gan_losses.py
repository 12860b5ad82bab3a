"""Losses of GANs: against formulas written out, as games, and far out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import data, models
from driftlab.game import Game
from driftlab.models import gan
from driftlab.models.gan_losses import KINDS, gan_draw, gan_losses
from driftlab.play import simultaneous

RANDOM = np.random.RandomState(0)
IMAGES = jnp.asarray(RANDOM.randn(4, 2, 2, 1))
DRAWN = {"latents": jnp.asarray(RANDOM.randn(4, 3)), "mixing": jnp.array([0.1, 0.5, 0.8, 1.0])}
BATCH = (IMAGES, DRAWN)
PARAMS = {
    "discriminator": {"w": jnp.asarray(RANDOM.randn(4)), "b": jnp.array(0.3)},
    "generator": jnp.asarray(0.3 * RANDOM.randn(3, 4)),
}


def discriminator(params, images):
    return jnp.tanh(images.reshape(-1, 4) @ params["w"]) * 2 + params["b"]


def generator(params, latents):
    return (latents @ params).reshape(-1, 2, 2, 1)


def scores():
    made = generator(PARAMS["generator"], DRAWN["latents"])
    real = discriminator(PARAMS["discriminator"], IMAGES)
    return np.array(real), np.array(discriminator(PARAMS["discriminator"], made)), np.array(made)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_formulas(kind):
    losses = gan_losses(discriminator, generator, kind, 3.0)
    found = {player: float(loss(PARAMS, BATCH)) for player, loss in losses.items()}
    real, fake, made = scores()
    d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    minimax = -np.log(d_real).mean() - np.log(1 - d_fake).mean()
    if kind == "saturating":
        expected = minimax, -minimax
    elif kind == "non_saturating":
        expected = minimax, -np.log(d_fake).mean()
    elif kind == "least_squares":
        expected = ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2
    elif kind == "hinge":
        hinge = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
        expected = hinge, -fake.mean()
    else:
        t = np.array(DRAWN["mixing"]).reshape(4, 1)
        mixed = t * np.array(IMAGES).reshape(4, 4) + (1 - t) * made.reshape(4, 4)
        w = np.array(PARAMS["discriminator"]["w"])
        slope = 2 * (1 - np.tanh(mixed @ w) ** 2).reshape(4, 1) * w.reshape(1, 4)
        norms = np.sqrt((slope**2).sum(1) + 1e-5)
        expected = fake.mean() - real.mean() + 3 * ((norms - 1) ** 2).mean(), -fake.mean()
    np.testing.assert_allclose([found["discriminator"], found["generator"]], expected, rtol=1e-12)


def test_the_saturating_game_is_zero_sum():
    game = Game(gan_losses(discriminator, generator, "saturating"))
    total = game.losses["discriminator"](PARAMS, BATCH) + game.losses["generator"](PARAMS, BATCH)
    assert float(total) == 0
    up = jax.grad(lambda g: game.losses["discriminator"]({**PARAMS, "generator": g}, BATCH))
    found = game.gradient("generator", PARAMS, BATCH)[1]
    np.testing.assert_allclose(found, -up(PARAMS["generator"]), rtol=1e-12)
    assert float(jnp.abs(found).max()) > 1e-3


@pytest.mark.parametrize("kind", ["saturating", "non_saturating"])
def test_scores_far_out_keep_finite_gradients(kind, float32):
    losses = gan_losses(lambda p, x: p * x.reshape(-1, 4).sum(1), generator, kind)
    params = {"discriminator": jnp.float32(1e4), "generator": jnp.ones((3, 4), jnp.float32)}
    batch = (jnp.ones((2, 2, 2, 1), jnp.float32), {"latents": jnp.ones((2, 3), jnp.float32)})
    for sign in (1.0, -1.0):
        point = {**params, "discriminator": sign * params["discriminator"]}
        for player, loss in losses.items():
            value, gradient = jax.value_and_grad(loss)(point, batch)
            leaves = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
            assert bool(jnp.isfinite(value) & jnp.isfinite(leaves).all()), (player, sign)


def test_the_penalty_has_finite_second_derivatives_where_the_gradient_vanishes():
    losses = gan_losses(lambda p, x: p * x.reshape(-1, 4).sum(1), generator, "wasserstein")
    point = {"discriminator": jnp.zeros(()), "generator": PARAMS["generator"]}

    def along(p):
        return jax.grad(losses["discriminator"])({**point, "discriminator": p}, BATCH)

    slope = jax.jacfwd(along)(point["discriminator"])["discriminator"]
    # d^2/dp^2 of 10 (sqrt(4 p^2 + e) - 1)^2 at 0: 80 (1 - 1 / sqrt(e)).
    np.testing.assert_allclose(slope, 80 * (1 - 1e-5**-0.5), rtol=1e-9)


def test_a_game_of_networks_and_labelled_images_learns_something():
    networks = gan.mlp_gan(widths=(16,))
    loaded = data.load("digits", train_size=64, normalization="unit")
    images = jnp.asarray(2 * loaded.train.inputs - 1, float)
    losses = gan_losses(
        models.apply_function(networks.discriminator), models.apply_function(networks.generator)
    )
    game = Game(
        losses,
        (images, loaded.train.targets),
        driftlab.with_replacement(16),
        draw=gan_draw(16, 4),
    )
    key = jax.random.key(0)
    params = jax.jit(
        lambda key: {
            "discriminator": models.initialize(networks.discriminator, key, images),
            "generator": models.initialize(networks.generator, key, jnp.zeros((1, 4))),
        }
    )(key)
    dynamics = simultaneous({"discriminator": optax.sgd(0.1), "generator": optax.sgd(1e-9)}, game)
    run = jax.jit(lambda state: jax.lax.fori_loop(0, 100, lambda _, s: dynamics.step(s), state))
    state = dynamics.init(params, key)
    batch = game.batch(key, jnp.asarray(1000))
    before = losses["discriminator"](state.params, batch)
    after = losses["discriminator"](run(state).params, batch)
    assert float(after) < 0.3 * float(before)


def test_bad_batches_are_refused():
    losses = gan_losses(discriminator, generator)
    with pytest.raises(ValueError, match="kind='wgan' must be one of"):
        gan_losses(discriminator, generator, "wgan")
    with pytest.raises(ValueError, match=r"must be \(examples, drawn\)"):
        losses["generator"](PARAMS, IMAGES)
    with pytest.raises(ValueError, match="not 'latents'"):
        losses["generator"](PARAMS, (IMAGES, {"mixing": DRAWN["mixing"]}))
    with pytest.raises(ValueError, match=r"makes images of shape \(2, 2, 1\).*\(3, 3, 1\)"):
        losses["generator"](PARAMS, (jnp.zeros((4, 3, 3, 1)), DRAWN))
    wide = gan_losses(lambda p, x: x.reshape(-1, 4), generator)
    with pytest.raises(ValueError, match="one score an image"):
        wide["discriminator"](PARAMS, BATCH)
    penalised = gan_losses(discriminator, generator, "wasserstein")
    with pytest.raises(ValueError, match="mixing=True"):
        penalised["discriminator"](PARAMS, (IMAGES, {"latents": DRAWN["latents"]}))
    with pytest.raises(ValueError, match="all need one length"):
        penalised["discriminator"](PARAMS, (IMAGES[:3], DRAWN))
    with pytest.raises(ValueError, match="batch_size=0"):
        gan_draw(0, 4)
