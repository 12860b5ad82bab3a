"""Portraits: gradient descent and its flows over the contours of a loss of two parameters."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import driftlab
from driftlab.data.problems import Problem
from driftlab.flows.solve import solve
from driftlab.plot.axes import add_panels
from driftlab.plot.style import LINE_COLORS, new_figure, style
from driftlab.suggestions import nearest
from experiments import flags
from experiments.flow_models import make_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOWS = ("gradient_flow", "order_2", "principal")
# Points of a flow's path an iteration.
_POINTS = 12
# Much less and the principal flow cannot pass h lambda = 1, where its field is singular.
_RTOL = 1e-5
# How far beyond what is drawn a panel reaches, in its extent.
_MARGIN = 0.15


class Portrait(NamedTuple):
    """What is drawn of a problem.

    Attributes:
      problem: its loss and start.
      scaled_rates: `h lambda_0`, lambda_0 the largest eigenvalue of the Hessian at the start.
      steps: iterations.
    """

    problem: Problem
    scaled_rates: Float[np.ndarray, " rates"]
    steps: int


def parse_portraits(config: Any, known: Mapping[str, Callable[[], Problem]]) -> list[Portrait]:
    """The portraits of a config.

    Args:
      config: an `ml_collections.ConfigDict` with `portraits`, `portrait_rates`, `portrait_steps`.
      known: name -> a problem of two parameters.

    Returns:
      One a name.

    Raises:
      ValueError: for a name that is not known, or rates or steps out of range.
    """
    names = [name.strip() for name in config.portraits.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"portraits: there is no problem {name!r}: {nearest(name, known)}")
    rates = flags.parse_values(config.portrait_rates, "portrait_rates", positive=True)
    if config.portrait_steps < 1:
        raise ValueError(f"portrait_steps={config.portrait_steps} must be 1 or more.")
    return [Portrait(known[name](), rates, config.portrait_steps) for name in names]


def paths(portrait: Portrait) -> tuple[Float[np.ndarray, "rates n 2"], dict[str, np.ndarray]]:
    """The iterates and the flows' paths.

    Args:
      portrait: what to follow.

    Returns:
      The iterates, `(rates, steps + 1, 2)`, and name -> path `(rates, points, 2)`; NaN from where
      a solve failed.
    """
    problem, objective = portrait.problem, driftlab.Objective(portrait.problem.loss)
    start = problem.initial_params
    rates = jnp.asarray(portrait.scaled_rates) / _sharpness(problem, start)

    def iterates(rate: Array) -> Array:
        def one(x: Array, _: Any) -> tuple[Array, Array]:
            return x - rate * jax.grad(problem.loss)(x), x

        return jax.lax.scan(one, start, length=portrait.steps + 1)[1]

    def path(rate: Array, name: str) -> Array:
        def sgd(learning_rate: Any) -> optax.GradientTransformation:
            return optax.sgd(learning_rate)

        model = make_model(name, sgd, objective, start, rate, None)

        def advance(y: Any, _: Any) -> tuple[Any, Array]:
            solved = solve(model.flow.field, y, model.step_time / _POINTS, rtol=_RTOL)
            lost = solved.failed
            following = jax.tree.map(lambda leaf: jnp.where(lost, jnp.nan, leaf), solved.y)
            return following, model.flow.params(y)

        points = portrait.steps * _POINTS + 1
        return jax.lax.scan(advance, model.flow.init(start), length=points)[1]

    found = jax.jit(jax.vmap(iterates))(rates)
    # Mapped, not vmapped: an adaptive solve would go at the pace of the stiffest.
    flows = {
        name: np.asarray(
            jax.jit(lambda many, n=name: jax.lax.map(lambda h: path(h, n), many))(rates)
        )
        for name in FLOWS
    }
    return np.asarray(found), flows


@style()
def draw(portrait: Portrait) -> "Figure":
    """One panel a learning rate.

    Args:
      portrait: what to draw.

    Returns:
      The figure.
    """
    iterates, flows = paths(portrait)
    sharpness = float(_sharpness(portrait.problem, portrait.problem.initial_params))
    titles = [
        rf"h = {scaled / sharpness:.3g}, $h\lambda_0$ = {scaled:.3g}"
        for scaled in portrait.scaled_rates
    ]
    figure = new_figure(3.5 * min(len(titles), 3), 3.9 * -(-len(titles) // 3))
    panels = add_panels(figure, titles, "x", "y")
    low, high = _extent(iterates, flows)
    for index, panel in enumerate(panels):
        _contours(panel, portrait.problem, low, high)
        for color, (name, path) in zip(LINE_COLORS, flows.items(), strict=False):
            dashes = "--" if name == "gradient_flow" else "-"
            label = "implicit gradient regularisation" if name == "order_2" else f"{name}"
            label = label.replace("_", " ").replace("principal", "principal flow, real part")
            panel.plot(*path[index].T, color=color, label=label, lw=1.5, linestyle=dashes)
        panel.plot(
            *iterates[index].T,
            color="black",
            marker="o",
            ms=3.5,
            lw=0.7,
            linestyle=":",
            label="gradient descent",
        )
        panel.plot(*np.asarray(portrait.problem.minimizer), marker="*", color="#CC3311", ms=9)
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.grid(visible=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _sharpness(problem: Problem, params: Array) -> Array:
    return jnp.linalg.eigvalsh(jax.hessian(problem.loss)(params))[-1]


def _extent(iterates: np.ndarray, flows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The corners: around the first rate's run, and what stays within thrice its size of it."""
    first = np.vstack([iterates[0], flows["gradient_flow"][0]])
    size = np.nanmax(np.nanmax(first, axis=0) - np.nanmin(first, axis=0))
    centre = np.nanmean(first, axis=0)
    drawn = np.vstack([path.reshape(-1, 2) for path in (iterates, *flows.values())])
    points = drawn[abs(drawn - centre).max(-1) < 3 * size]  # false for NaN
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * np.maximum(high - low, 0.2 * size)
    return low - margin, high + margin


def _contours(panel: "Axes", problem: Problem, low: np.ndarray, high: np.ndarray) -> None:
    x, y = (np.linspace(a, b, 160) for a, b in zip(low, high, strict=True))
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).astype(problem.initial_params.dtype)
    heights = np.asarray(jax.vmap(jax.vmap(lambda point: problem.loss(point)))(grid))
    lowest = float(problem.loss(problem.minimizer))
    # Evenly spaced in the square root: round contours for a quadratic.
    rise = np.sqrt(np.maximum(heights - lowest, 0))
    panel.contour(x, y, rise, levels=14, colors="#B8B8B8", linewidths=0.6)
