"""Figures of the models of the edge of stability."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from driftlab.plot.labels import number
from driftlab.plot.style import new_figure, style
from experiments.central_flows_report import EDGE, effective, smoothed

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

COLORS = {
    "optimizer": "0.6", "central": "black", "rod": "tab:blue", "edge": "tab:green",
    "stable": "tab:red",
}  # fmt: skip


def draw(results: Mapping[str, "xarray.Dataset"], window: int) -> dict[str, "Figure"]:
    """Two figures an optimiser, of the first seed, a column a learning rate.

    Args:
      results: optimiser -> its dataset.
      window: of the moving average.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    for name, dataset in results.items():
        figures[f"central_flows_{name}"] = draw_models(name, dataset, window)
        if "central" in dataset["model"].values:
            figures[f"central_flows_{name}_variance"] = draw_variances(name, dataset, window)
    return figures


@style()
def draw_models(name: str, dataset: "xarray.Dataset", window: int) -> "Figure":
    """Sharpness, loss, oscillation and distance of every model.

    Args:
      name: the optimiser's.
      dataset: of it.
      window: of the moving average.

    Returns:
      The figure.
    """
    rates = dataset["learning_rate"].values
    figure = new_figure(1 + 4.5 * len(rates), 11, name.replace("_", " "))
    panels = figure.subplots(4, len(rates), sharex=True, squeeze=False)
    sharpness = effective(dataset).isel(seed=0)
    for column, rate in enumerate(rates):
        lanes = dataset.isel(seed=0).sel(learning_rate=rate)
        top, middle, square, bottom = panels[:, column]
        top.set_title(f"learning rate {number(rate)}")
        raw = lanes["loss"].sel(model="optimizer")
        middle.plot(raw["step"], raw, color="0.85", linewidth=0.8, label="optimizer, raw")
        for model in map(str, dataset["model"].values):
            line = {"color": COLORS[model], "label": model, "linewidth": 1.4}
            # Rod and edge flow often coincide.
            line["linestyle"] = "--" if model == "edge" else "-"
            values = sharpness.sel(learning_rate=rate, model=model)
            lane = lanes.sel(model=model)
            verdict = str(lane["verdict"].values)
            if verdict != "ok":
                line["label"] = f"{model} ({verdict})"
            top.plot(values["step"], values, **line)
            loss, oscillation = lane["predicted_loss"].values, lane["oscillation"].values
            if model == "optimizer":
                loss, oscillation = smoothed(loss, window), smoothed(oscillation, window)
                line["label"] = "optimizer, smoothed"
            else:
                bottom.plot(lane["step"], lane["distance"], **line)
            middle.plot(lane["step"], loss, **line)
            if model != "stable":
                square.plot(lane["step"], np.where(oscillation > 0, oscillation, np.nan), **line)
        top.axhline(EDGE, color="black", linestyle=":", linewidth=1)
        arrived = float(sharpness.sel(learning_rate=rate, model="optimizer").max())
        top.set_ylim(0, max(2 * EDGE, 1.1 * arrived))
        middle.set_yscale("log")
        square.set_yscale("log")
        highest = float(lanes["oscillation"].sel(model="optimizer").max())
        square.set_ylim(1e-6 * highest, 10 * highest)
        bottom.set_xlabel("step")
    panels[0, 0].set_ylabel("learning rate x\neffective sharpness")
    panels[1, 0].set_ylabel("loss, averaged over\nthe oscillation")
    panels[2, 0].set_ylabel("mean square of the\noscillation (parameters²)")
    panels[3, 0].set_ylabel("distance to the optimizer\n(parameters)")
    panels[1, 0].legend(fontsize=8)
    return figure


@style()
def draw_variances(name: str, dataset: "xarray.Dataset", window: int) -> "Figure":
    """The variance along each eigenvector of the central flow's covariance, beside the optimiser's.

    Args:
      name: the optimiser's.
      dataset: of it.
      window: of the moving average.

    Returns:
      The figure.
    """
    rates = dataset["learning_rate"].values
    title = f"{name.replace('_', ' ')}: variance by eigenvector"
    figure = new_figure(1 + 4.5 * len(rates), 3.6, title)
    panels = figure.subplots(1, len(rates), squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        lane = dataset.isel(seed=0).sel(learning_rate=rate, model="central")
        predicted, measured = (
            lane[key].transpose("step", ...).values
            for key in ("variance_predicted", "variance_measured")
        )
        for index in range(predicted.shape[1]):
            curve = smoothed(predicted[:, index], window)
            if not np.nanmax(curve, initial=0) > 0:
                continue
            color = f"C{index}"
            drawn = np.where(curve > 0, curve, np.nan)
            panel.plot(lane["step"], drawn, color=color, label=f"{index + 1}, predicted")
            own = smoothed(measured[:, index], window)
            panel.plot(
                lane["step"], np.where(own > 0, own, np.nan),
                color=color, linestyle=":", label=f"{index + 1}, measured",
            )  # fmt: skip
        panel.set_yscale("log")
        highest = np.nanmax(predicted, initial=0)
        if highest > 0:
            panel.set_ylim(1e-4 * highest, 10 * highest)
        panel.set_title(f"learning rate {number(rate)}")
        panel.set_xlabel("step")
    panels[0].set_ylabel("variance (parameters²)")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize=8)
    return figure
