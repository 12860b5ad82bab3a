"""The figures of the directions of minibatch gradients."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.lines import Line2D

from driftlab.plot.axes import add_panels, log_ticks, panel_size
from driftlab.plot.labels import number
from driftlab.plot.style import LINE_COLORS, new_figure, style
from experiments.gradient_directions_models import NETWORKS
from experiments.gradient_directions_report import FLOOR, KAPPA, PREDICTED, UNBIASED, median

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@style()
def draw(found: "xarray.Dataset") -> dict[str, "Figure"]:
    """The figures.

    Args:
      found: from `measured`.

    Returns:
      File name without ending -> figure.
    """
    return {
        "gradient_directions_concentration": _draw_course(found),
        "gradient_directions_identity": _draw_identity(found),
        "gradient_directions_correlations": _draw_correlations(found),
    }


def _draw_course(found: "xarray.Dataset") -> "Figure":
    names, rates = found["network"].values, found["learning_rate"].values
    width, height = panel_size(len(names))
    figure = new_figure(width, height, "Concentration of minibatch gradients' directions")
    titles = [NETWORKS[str(name)] for name in names]
    panels = add_panels(figure, titles, "epoch", r"concentration $\hat\kappa / d$")
    epochs = found["epoch"].values
    for panel, name in zip(panels, names, strict=True):
        for color, rate in zip(LINE_COLORS, rates, strict=False):
            lanes = found.sel(network=name, learning_rate=rate)
            for variable, line in ((KAPPA, "-"), (UNBIASED, "--"), (PREDICTED, ":")):
                values = lanes[variable].where(lanes[variable] > 0)
                panel.plot(epochs, values.median("seed"), line, color=color)
            each = lanes[KAPPA]
            panel.fill_between(epochs, each.min("seed"), each.max("seed"), color=color, alpha=0.15)
            lost = int((lanes["verdict"] != "ok").sum())
            if lost:
                panel.annotate(
                    f"{lost} diverged at {rate:g}", (0.03, 0.04), xycoords="axes fraction"
                )
        panel.axhline(median(found[FLOOR]), color="#666666", linewidth=1)
        panel.set_yscale("log")
        log_ticks(panel.yaxis)
    handles = [Line2D([], [], color=c, label=f"learning rate {number(float(r))}")
               for c, r in zip(LINE_COLORS, rates, strict=False)]  # fmt: skip
    handles += [
        Line2D([], [], color="black", label=r"$\hat\kappa/d$, median (band: all seeds)"),
        Line2D([], [], color="black", linestyle="--", label=r"unbiased $\hat\kappa/d$"),
        Line2D([], [], color="black", linestyle=":", label=r"$\sqrt{b(1+b)}$"),
        Line2D([], [], color="#666666", linewidth=1, label=r"floor $\sqrt{n}/(n-1)$"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
    return figure


def _draw_identity(found: "xarray.Dataset") -> "Figure":
    figure = new_figure(6.4, 5.0, "Concentration and gradient noise")
    panel = figure.subplots()
    values: list[Float[np.ndarray, " n"]] = []
    markers = "os^Dv<>"
    colors = (*LINE_COLORS, "#D55E00")
    for index, name in enumerate(found["network"].values):
        lanes = found.sel(network=name)
        x, y = lanes[PREDICTED].values.ravel(), lanes[UNBIASED].values.ravel()
        good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
        values += [x[good], y[good]]
        panel.plot(x[good], y[good], markers[index], color=colors[index], markersize=3.5,
                   alpha=0.7, label=NETWORKS[str(name)])  # fmt: skip
    both = np.concatenate(values)
    if both.size:
        ends = [both.min(), both.max()]
        panel.plot(ends, ends, color="black", linewidth=1, label="equal")
    panel.axhline(median(found[FLOOR]), color="#666666", linewidth=1, linestyle=":",
                  label=r"floor of $\hat\kappa / d$")  # fmt: skip
    panel.set(xscale="log", yscale="log")
    for axis in (panel.xaxis, panel.yaxis):
        log_ticks(axis)
    panel.set_xlabel(r"from the noise: $\sqrt{b(1+b)}$, $b = |G|^2 / \mathrm{tr\,Cov}$")
    panel.set_ylabel(r"from the directions: unbiased $\hat\kappa / d$")
    panel.legend()
    return figure


def _draw_correlations(found: "xarray.Dataset") -> "Figure":
    names = found["network"].values
    figure = new_figure(1.2 * len(names) + 2.4, 4.0, "Correlation of gradient stochasticity (GS)")
    panel = figure.subplots()
    for offset, variable, color, label in (
        (-0.15, "kappa_correlation", LINE_COLORS[0], r"with concentration $\hat\kappa$"),
        (0.15, "norm_correlation", LINE_COLORS[1], "with norm stochasticity (GNS)"),
    ):
        for index, name in enumerate(names):
            values = found[variable].sel(network=name).values.ravel()
            panel.plot(np.full(values.shape, index + offset), values, "o", color=color, alpha=0.6)
            panel.plot(index + np.array([-0.1, 0.1]) + offset, [median(found[variable].sel(
                network=name))] * 2, color=color, linewidth=2.5)  # fmt: skip
        panel.plot([], [], "o-", color=color, label=label)
    panel.set_xticks(range(len(names)))
    labels = [NETWORKS[str(name)].replace(", ", ",\n").replace(" CNN", "\nCNN") for name in names]
    panel.set_xticklabels(labels, fontsize=9)
    panel.set_ylabel("correlation along training,\none dot a lane (line: median)")
    panel.set_ylim(top=1.02)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
