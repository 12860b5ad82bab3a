"""Maps of linear games' growth over the two learning rates, with theory's boundaries."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from driftlab.plot.axes import add_panels, cell_edges
from driftlab.plot.style import new_figure, style
from experiments.linear_games import GAMES, ROUNDING, theory

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond it all growth has one colour.
_STRONGEST = 0.3
# Points of theory's boundary between two learning rates.
_FINER = 4


@style()
def draw(found: "xarray.Dataset") -> dict[str, "Figure"]:
    """The maps.

    Args:
      found: from `growth`.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    for game in found.game.values:
        plays = [str(play) for play in found.play.values]
        figure = new_figure(3.6 * len(plays) + 1, 4.7, _equations(str(game)))
        titles = [play.replace("_", " ") for play in plays]
        panels = add_panels(
            figure, titles, r"learning rate of $\phi$", r"learning rate of $\theta$"
        )
        for panel, play in zip(panels, plays, strict=True):
            mesh = _map(panel, found.sel(game=game, play=play), str(game), play)
        bar = figure.colorbar(mesh, ax=panels, extend="both", pad=0.02)
        bar.set_label("measured growth, log a round")
        handles = [
            Line2D([], [], color="black", lw=1.8, label="theory: the round's spectral radius is 1"),
            Line2D([], [], color="#009E73", lw=1.8, ls="--", label="modified flow's boundary"),
            Patch(facecolor="#7A0A22", edgecolor="white", hatch="///", lw=0, label="diverged"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        figures[f"bilinear_quadratic_games_{str(game).replace('.', '_')}"] = figure
    return figures


def _equations(game: str) -> str:
    e1, e2, c1, c2 = GAMES[game]

    def row(left: str, *terms: tuple[float, str]) -> str:
        parts = []
        for factor, name in terms:
            if factor:
                size = "" if abs(factor) == 1 else f"{abs(factor):g}"
                sign = "-" if factor < 0 else "+" if parts else ""
                parts.append(f"{sign}{size}{name}")
        return f"${left} = {' '.join(parts)}$"

    first = row(r"\dot\phi", (-e1, r"\phi"), (c1, r"\theta"))
    second = row(r"\dot\theta", (-c2, r"\phi"), (-e2, r"\theta"))
    return f"{game.replace('_', ' ')}: {first}, {second}"


def _map(panel: "Axes", lane: "xarray.Dataset", game: str, play: str) -> Any:
    phi, theta_rates = lane.phi_rate.values, lane.theta_rate.values
    norm = SymLogNorm(1e-3, vmin=-_STRONGEST, vmax=_STRONGEST)
    edges = (cell_edges(phi, True), cell_edges(theta_rates, True))
    values = lane.measured.transpose("theta_rate", "phi_rate").values
    mesh = panel.pcolormesh(*edges, values, norm=norm, cmap="RdBu_r")
    lost = lane.diverged.transpose("theta_rate", "phi_rate").values
    if lost.any() and min(lost.shape) > 1:
        region = panel.contourf(
            phi, theta_rates, lost.astype(float), [0.5, 1.5], colors="none", hatches=["///"]
        )
        region.set_edgecolor("white")
        region.set_linewidth(0)
    finer = [
        np.geomspace(rates[0], rates[-1], _FINER * (len(rates) - 1) + 1)
        for rates in (phi, theta_rates)
    ]
    boundaries = theory(game, play, *finer)
    for boundary, color, dashes in zip(boundaries, ("black", "#009E73"), ("-", "--"), strict=True):
        sides = boundary > ROUNDING
        if sides.any() and not sides.all():
            # The class, not the number: on a whole region that may be 0 to rounding.
            panel.contour(
                *finer,
                sides.T.astype(float),
                [0.5],
                colors=color,
                linestyles=dashes,
                linewidths=1.8,
            )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(visible=False)
    return mesh
