"""Whether a game's equilibrium holds: spectra of its fields and of the maps of its rounds."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike

from driftlab.checks import check_players
from driftlab.flows.game_spectra import dense_jacobian, leading_eigenvalues
from driftlab.flows.games import game_flow, game_step
from driftlab.game import Game, Players
from driftlab.objective import Batch

Verdict = Literal["stable", "marginal", "unstable", "unknown"]


class Stability(NamedTuple):
    """Of one field or map.

    Attributes:
      verdict: "stable" if `margin < -band`, "unstable" if `margin > band`, else "marginal", the
        band being the tolerance plus the residual; "unknown" where a number is not finite, or
        Arnoldi's method found nothing that is unstable but did not converge either.
      margin: of a field its spectral abscissa, the largest real part of an eigenvalue of its
        Jacobian, per round; of a map its spectral radius less 1.
      eigenvalue: which has it; of a complex pair the one above the real axis.
      residual: `|J v - eigenvalue v| / |v|`; 0 for a dense Jacobian. Of a matrix far from normal
        an eigenvalue may be further off than its residual.
      jacobian: `(n, n)`, in the order of `jax.flatten_util.ravel_pytree` (players by name); None
        where it was not formed.
    """

    verdict: Verdict
    margin: float
    eigenvalue: complex
    residual: float
    jacobian: np.ndarray | None


class Play(NamedTuple):
    """A way to play.

    Attributes:
      rounds: of the map of a round: what really happens.
      modified: of its order-2 flow: what the theory of small learning rates says.
    """

    rounds: Stability
    modified: Stability


class GameStability(NamedTuple):
    """What `game_stability` found.

    Attributes:
      gradient_norm: `|xi|` with corrections; not 0 where the point is no equilibrium, of which
        alone the verdicts speak.
      continuous: of the gradient flow at these learning rates, an update each a round.
      simultaneous: everyone at once.
      alternating: by the order of the turns.
    """

    gradient_norm: float
    continuous: Stability
    simultaneous: Play
    alternating: dict[tuple[str, ...], Play]


def game_stability(
    game: Game,
    learning_rates: Mapping[str, ArrayLike],
    params: Players,
    batch: Batch = (),
    *,
    updates: Mapping[str, int] | None = None,
    turns: Sequence[Sequence[str]] | None = None,
    dense_limit: int = 256,
    tolerance: float | None = None,
) -> GameStability:
    """Whether gradient play stays at an equilibrium: simultaneous, alternating, in continuous time.

    With G_p the gradient of player p, correction included, a_p the player's rate a round and K as
    in `driftlab.flows.games.interaction_coefficients`, the Jacobians at params of

    - the gradient flow, `-a_p G_p` at one update each;
    - the modified flows, `-a_p G_p + sum_q K_pq (d_q G_p) G_q` (`game_flow` at order 2);
    - the rounds themselves, `driftlab.play.simultaneous` and `alternating` with `optax.sgd`.

    All fields count time in rounds. In the simultaneous play of equal rates h the modified
    Jacobian is `h (J - (h / 2) J^2)`, J that of -G: an imaginary pair `+-i w` of J gets the real
    part `h^2 w^2 / 2`. The two orders of two players have rounds with the same eigenvalues.

    Args:
      game: the game.
      learning_rates: player -> learning rate of one update.
      params: the equilibrium; player -> parameters.
      batch: what the losses take; for a game with data pass `game.data`.
      updates: player -> updates a round in alternating play; None for one each.
      turns: the orders of alternating play; None for that of the game's losses and its reverse.
      dense_limit: up to this many parameters the Jacobians are formed, and all eigenvalues found.
      tolerance: half the width of the marginal band, in margin's units; None for the square root
        of the precision of params, about which an eigenvalue without a full set of eigenvectors
        is off.

    Returns:
      The report.

    Raises:
      TypeError: under `jax.jit` or `jax.vmap`: use the functions of matrices there.
      ValueError: if learning rates, params, updates or turns do not match the players; as
        `driftlab.flows.games.game_flow`.

    Source: Rosca, Wu, Dherin & Barrett (2021), section 4. Cost: a Jacobian-vector product of a
    round or field for every parameter, or for every step of Arnoldi's method.
    """
    check_players("params", params, game.players)
    check_players("learning_rates", learning_rates, game.players)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, dict(learning_rates)))):
        raise TypeError(
            "game_stability looks at values, so it cannot be traced: call it outside jax.jit and "
            "jax.vmap. In lanes use dense_jacobian with spectral_abscissa or spectral_radius."
        )
    moves = dict.fromkeys(game.players, 1) if updates is None else dict(updates)
    check_players("updates", moves, game.players)
    names = game.players
    orders = [names, names[::-1]] if turns is None else [tuple(order) for order in turns]
    rates = {p: learning_rates[p] for p in names}
    params = {p: jax.tree.map(jnp.asarray, params[p]) for p in names}
    flat, _ = ravel_pytree(params)
    band = float(jnp.finfo(flat.dtype).eps ** 0.5) if tolerance is None else float(tolerance)

    def at_rest(field: Any) -> Any:
        return lambda y: field(0.0, y, None)

    functions: dict[Any, Any] = {
        ("continuous", "field"): at_rest(game_flow(game, rates, 1, batch=batch))
    }
    for order in (None, *orders):
        scheme: dict[str, Any] = {"simultaneous": True}
        if order is not None:
            scheme = {"turns": order, "updates": tuple(moves.get(p, 1) for p in order)}
        functions[order, "map"] = game_step(game, rates, batch=batch, **scheme)
        functions[order, "field"] = at_rest(game_flow(game, rates, 2, batch=batch, **scheme))

    if flat.size <= dense_limit:
        # All in one program: most of the time is compilation.
        jacobians = jax.jit(lambda at: [dense_jacobian(f, at) for f in functions.values()])(params)
        found = {
            key: _of_jacobian(np.asarray(jacobian), key[1], band)
            for key, jacobian in zip(functions, jacobians, strict=True)
        }
    else:
        found = {key: _of_products(f, params, key[1], band) for key, f in functions.items()}
    plays = {order: Play(found[order, "map"], found[order, "field"]) for order in (None, *orders)}
    xi = ravel_pytree({p: game.corrected_gradient(p, params, batch) for p in names})[0]
    return GameStability(
        float(jnp.linalg.norm(xi)),
        found["continuous", "field"],
        plays[None],
        {order: plays[order] for order in orders},
    )


def _of_jacobian(jacobian: np.ndarray, kind: str, band: float) -> Stability:
    finite = bool(np.isfinite(jacobian).all())
    values = np.linalg.eigvals(jacobian) if finite else np.array([complex("nan")])
    return _judged(values, np.zeros(len(values)), True, jacobian, kind, band)


def _of_products(function: Any, params: Players, kind: str, band: float) -> Stability:
    found = leading_eigenvalues(function, params, "modulus" if kind == "map" else "real")
    return _judged(*found, None, kind, band)


def _judged(
    values: Any,
    residuals: np.ndarray,
    converged: bool,
    jacobian: np.ndarray | None,
    kind: str,
    band: float,
) -> Stability:
    margins = np.abs(values) - 1 if kind == "map" else values.real
    # Of a pair the same one every time, whatever rounding does to the other.
    leading = np.lexsort((-values.imag, -margins.round(12)))[0]
    margin, residual = float(margins[leading]), float(residuals[leading])
    verdict: Verdict = "marginal"
    if not np.isfinite(margin):
        verdict = "unknown"
    elif margin > band + residual:
        verdict = "unstable"
    elif not converged:
        verdict = "unknown"
    elif margin < -band - residual:
        verdict = "stable"
    return Stability(verdict, margin, complex(values[leading]), residual, jacobian)
