"""Figures of A2Grad's experiment: curves of the best settings, and A2Grad's grid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab import plot
from driftlab.plot.axes import log_ticks
from driftlab.plot.style import LINE_COLORS, new_figure
from experiments.a2grad_report import PUBLISHED, RIVALS, WHOLE, Outcome, Results

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(results: Results, found: Sequence[Outcome]) -> dict[str, "Figure"]:
    """The figures.

    Args:
      results: network -> family -> dataset.
      found: from `outcomes`.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    for network, families in results.items():
        here = [o for o in found if (o.network, o.grid) == (network, WHOLE)]
        if here:
            figures[f"a2grad_curves_{network}"] = _curves(here)
        if here and "a2grad" in families:
            figures[f"a2grad_grid_{network}"] = _grid(families["a2grad"], here)
    return figures


def _look(method: str) -> dict[str, Any]:
    """Colours of variants, dashed for one scale a tensor; the rivals in black and grey."""
    variant, _, scalar = method.partition(" ")
    if variant in PUBLISHED:
        color = LINE_COLORS[PUBLISHED.index(variant)]
        return {"color": color, "linestyle": "--" if scalar else "-"}
    return {"adam": {"color": "#000000"}, "amsgrad": {"color": "#000000", "linestyle": ":"}}.get(
        method, {"color": "#888888"}
    )


@plot.style()
def _curves(here: Sequence[Outcome]) -> "Figure":
    """Training loss and test error of the best settings along training."""
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    for o in here:
        left.plot(o.epochs, o.losses, label=o.method, linewidth=1.3, **_look(o.method))
        right.plot(o.epochs, 100 * (1 - o.accuracies), linewidth=1.3, **_look(o.method))
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    log_ticks(left.yaxis)
    right.set(xlabel="epoch", ylabel="test error (%)")
    # The first epochs of what is best at the end may be far off the scale, and the start off that
    # of curves that hardly fall.
    lowest = min(o.losses.min() for o in here)
    start = max(o.losses[0] for o in here)
    first = max(o.losses[min(1, len(o.losses) - 1)] for o in here)
    left.set_ylim(0.9 * lowest, 1.2 * start if lowest < 0.1 * start else 1.1 * first)
    errors = 100 - 100 * np.concatenate([o.accuracies[min(2, len(o.epochs) - 1) :] for o in here])
    margin = 0.05 * np.ptp(errors) + 0.1
    right.set_ylim(errors.min() - margin, errors.max() + margin)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


@plot.style()
def _grid(dataset: "xarray.Dataset", here: Sequence[Outcome]) -> "Figure":
    """Final training loss over A2Grad's grid: a panel a variant, a colour an L."""
    seeds = ["seed"] if "seed" in dataset.dims else []
    ended = (dataset.verdict == "ok").all(seeds)
    final = dataset.training_loss.isel(step=-1).mean(seeds).where(ended)
    figure = new_figure(10.2, 4.2)
    panels = figure.subplots(1, 3, sharey=True)
    rival = min(
        (o for o in here if o.method in RIVALS), key=lambda o: o.training_loss, default=None
    )
    for panel, variant in zip(panels, PUBLISHED, strict=True):
        panel.set(xscale="log", yscale="log", title=variant, xlabel=r"$\beta$ (1 / parameter)")
        for method, style in ((variant, "-"), (f"{variant} scalar", "--")):
            if method not in dataset.optimizer.values:
                continue
            for index, level in enumerate(dataset.lipschitz.values):
                chosen = {"optimizer": method, "lipschitz": level}
                _draw_line(panel, final.sel(chosen), float(level), style, LINE_COLORS[index % 6])
        if rival is not None:
            panel.axhline(
                rival.training_loss, color="#000000", linewidth=1, linestyle=":",
                label=f"best of {rival.method}",
            )  # fmt: skip
        panel.margins(x=0.08, y=0.08)
    panels[0].set_ylabel("training loss at the end")
    log_ticks(panels[0].yaxis)
    known = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4)
    return figure


def _draw_line(
    panel: "Axes", final: "xarray.DataArray", level: float, style: str, color: str
) -> None:
    """One L; a lane that diverged is a red cross at the top."""
    betas, values = final.beta.values, final.values
    name = f"L = {level:g}" + (", one scale a tensor" if style == "--" else "")
    panel.plot(betas, values, style, color=color, marker="o", markersize=3.5, label=name)
    failed = ~np.isfinite(values)
    if failed.any():
        panel.plot(
            betas[failed], np.full(failed.sum(), 1.0), "x", color="#CC3311", clip_on=False,
            transform=panel.get_xaxis_transform(), label="diverged",
        )  # fmt: skip
