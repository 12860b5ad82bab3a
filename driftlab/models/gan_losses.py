"""The losses of generative adversarial networks, as the losses of a `driftlab.Game`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

DISCRIMINATOR, GENERATOR = "discriminator", "generator"
KINDS = ("saturating", "non_saturating", "least_squares", "hinge", "wasserstein")

Apply = Callable[[PyTree, Any], Array]
Players = dict[str, PyTree]


def gan_losses(
    discriminator: Apply,
    generator: Apply,
    kind: str = "non_saturating",
    gradient_penalty: ArrayLike = 10.0,
) -> dict[str, Callable[[Players, Any], Float[Array, ""]]]:
    """The two players' losses; D scores images (a logit), G makes them from latents.

    With means over the batch, `s(x) = log(1 + exp(x))`, `r = D(x)` on examples, `f = D(G(z))`:

    | kind | discriminator | generator |
    |---|---|---|
    | `saturating` | `s(-r) + s(f)` | the same, negated: a zero-sum game |
    | `non_saturating` | `s(-r) + s(f)` | `s(-f)` |
    | `least_squares` | `(r - 1)^2 / 2 + f^2 / 2` | `(f - 1)^2 / 2` |
    | `hinge` | `max(0, 1 - r) + max(0, 1 + f)` | `-f` |
    | `wasserstein` | `f - r + c (sqrt(|grad D(m)|^2 + 1e-5) - 1)^2` | `-f` |

    with `m = t x + (1 - t) G(z)`, t uniform, c the gradient penalty. Everything is finite wherever
    the scores are.

    Args:
      discriminator: `(params, images) -> scores`, `(batch,)` or `(batch, 1)`.
      generator: `(params, latents) -> images`.
      kind: one of the above.
      gradient_penalty: c, of `wasserstein` alone; may be traced.

    Returns:
      `{"discriminator": loss, "generator": loss}` of `(params, batch)`, params the same two names
      and batch `(examples, drawn)`, as `driftlab.Game(losses, data, draw=gan_draw(...))` has it:
      examples are images, or a pair (images, labels) whose labels nobody reads; `drawn["latents"]`
      is `(batch, latent_size)` and `drawn["mixing"]`, for `wasserstein`, t `(batch,)`. The losses
      raise a ValueError if something has not these shapes.

    Raises:
      ValueError: if there is no such kind.

    Source: Goodfellow et al. (2014); Mao et al. (2017), with labels 0, 1, 1; Lim & Ye (2017);
    Gulrajani et al. (2017), equation 3. The 1e-5 is that of Rosca et al. (2021)'s code.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")

    def parts(params: Players, batch: Any) -> tuple[Array, Array, dict[str, Array]]:
        images, drawn = _unpacked(batch)
        made = generator(params[GENERATOR], drawn["latents"])
        if made.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"the generator makes images of shape {made.shape[1:]}, the examples have "
                f"{images.shape[1:]}: give the generator the image_shape of the data."
            )
        return images, made, drawn

    def scores(params: Players, images: Array) -> Float[Array, " batch"]:
        found = discriminator(params[DISCRIMINATOR], images)
        if found.shape not in ((images.shape[0],), (images.shape[0], 1)):
            raise ValueError(
                f"the discriminator must give one score an image, {(images.shape[0],)} or "
                f"{(images.shape[0], 1)}; it gave {found.shape}."
            )
        return found.reshape(images.shape[0])

    def discriminator_loss(params: Players, batch: Any) -> Float[Array, ""]:
        images, made, drawn = parts(params, batch)
        real, fake = scores(params, images), scores(params, made)
        if kind in ("saturating", "non_saturating"):
            return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()
        if kind == "least_squares":
            return jnp.square(real - 1).mean() / 2 + jnp.square(fake).mean() / 2
        if kind == "hinge":
            return jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean()
        penalty = _gradient_penalty(lambda x: scores(params, x), images, made, drawn)
        return fake.mean() - real.mean() + jnp.asarray(gradient_penalty, penalty.dtype) * penalty

    def generator_loss(params: Players, batch: Any) -> Float[Array, ""]:
        if kind == "saturating":
            return -discriminator_loss(params, batch)
        fake = scores(params, parts(params, batch)[1])
        if kind == "non_saturating":
            return jax.nn.softplus(-fake).mean()
        if kind == "least_squares":
            return jnp.square(fake - 1).mean() / 2
        return -fake.mean()

    return {DISCRIMINATOR: discriminator_loss, GENERATOR: generator_loss}


def gan_draw(
    batch_size: int, latent_size: int, mixing: bool = False
) -> Callable[[PRNGKeyArray], dict[str, Array]]:
    """The random numbers of a batch, as `Game.draw`.

    Args:
      batch_size: images made a batch; that of the examples, for `wasserstein`.
      latent_size: numbers an image is made from.
      mixing: whether to draw the mixing numbers of `wasserstein` too.

    Returns:
      `draw(key) -> {"latents": (batch, latent_size) standard normal, "mixing": (batch,) uniform}`,
      in JAX's default type.

    Raises:
      ValueError: if a size is not positive.
    """
    if batch_size < 1 or latent_size < 1:
        raise ValueError(f"batch_size={batch_size} and latent_size={latent_size} must be positive.")

    def draw(key: PRNGKeyArray) -> dict[str, Array]:
        first, second = jax.random.split(key)
        drawn = {"latents": jax.random.normal(first, (batch_size, latent_size), float)}
        if mixing:
            drawn["mixing"] = jax.random.uniform(second, (batch_size,), float)
        return drawn

    return draw


def _gradient_penalty(
    scores: Callable[[Array], Array], images: Array, made: Array, drawn: dict[str, Array]
) -> Float[Array, ""]:
    if "mixing" not in drawn:
        raise ValueError(
            "the wasserstein loss needs mixing numbers: draw them with gan_draw(mixing=True)."
        )
    if images.shape != made.shape or drawn["mixing"].shape != images.shape[:1]:
        raise ValueError(
            f"the wasserstein loss mixes examples {images.shape} with as many images made, "
            f"{made.shape}, by mixing numbers {drawn['mixing'].shape}: all need one length."
        )
    mixing = drawn["mixing"].reshape(-1, *(1,) * (images.ndim - 1)).astype(images.dtype)
    mixed = mixing * images + (1 - mixing) * made
    # The sum's gradient holds each image's own, as long as a score depends on its image alone.
    gradients = jax.grad(lambda x: scores(x).sum())(mixed).reshape(images.shape[0], -1)
    norms = jnp.sqrt(jnp.square(gradients).sum(axis=1) + 1e-5)
    return jnp.square(norms - 1).mean()


def _unpacked(batch: Any) -> tuple[Array, dict[str, Array]]:
    if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], dict)):
        raise ValueError(
            f"the batch must be (examples, drawn), found {type(batch).__name__}: give the Game "
            "draw=gan_draw(batch_size, latent_size)."
        )
    examples, drawn = batch
    if "latents" not in drawn:
        raise ValueError(f"drawn holds {sorted(drawn)}, not 'latents': see gan_draw.")
    return jnp.asarray(examples[0] if isinstance(examples, tuple) else examples), drawn
