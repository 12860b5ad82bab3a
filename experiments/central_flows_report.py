"""What the models of the edge of stability came to: tables, claims and figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from driftlab.plot.labels import number
from driftlab.plot.style import new_figure, style

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

COLORS = {
    "optimizer": "0.6", "central": "black", "rod": "tab:blue", "edge": "tab:green",
    "stable": "tab:red",
}  # fmt: skip
EDGE = 2.0
_ARRIVED = 0.99
Rows = list[dict[str, Any]]


def smoothed(values: Float[np.ndarray, " steps"], window: int) -> Float[np.ndarray, " steps"]:
    """The moving average, centred; NaN where the window does not fit.

    Args:
      values: a curve.
      window: steps, odd.

    Returns:
      A curve of the same length.
    """
    found = np.full(len(values), np.nan)
    if len(values) < window:
        return found
    half = window // 2
    found[half : len(values) - half] = np.convolve(values, np.ones(window) / window, "valid")
    return found


def effective(dataset: "xarray.Dataset") -> "xarray.DataArray":
    """`h lambda_max(P^{-1/2} H P^{-1/2})`, whose edge is 2, at the steps where it was measured.

    Args:
      dataset: of one optimiser.

    Returns:
      The array, without the steps at which it is NaN everywhere.
    """
    scaled = dataset["preconditioned_sharpness"] * dataset["learning_rate"]
    return scaled.dropna("step", how="all")


def lane_rows(dataset: "xarray.Dataset", optimizer: str, window: int) -> Rows:
    """A row a learning rate, seed and model.

    Errors are means over the last half of the run, in which the optimiser is at the edge.

    Args:
      dataset: of one optimiser.
      optimizer: its name.
      window: of the moving average.

    Returns:
      The rows.
    """
    rows: Rows = []
    sharpness = effective(dataset)
    for rate in dataset["learning_rate"].values:
        for seed in dataset["seed"].values:
            lanes = dataset.sel(learning_rate=rate, seed=seed)
            raw = smoothed(lanes["loss"].sel(model="optimizer").values, window)
            late = np.arange(len(raw)) >= len(raw) // 2
            for model in dataset["model"].values:
                lane = lanes.sel(model=model)
                values = sharpness.sel(learning_rate=rate, seed=seed, model=model)
                kept = late & np.isfinite(raw)
                error = np.abs(lane["predicted_loss"].values - raw)[kept]
                last = {name: lane[name].values[-1] for name in ("distance", "distance_moved")}
                rows.append(
                    {
                        "optimizer": optimizer,
                        "learning rate": float(rate),
                        "seed": int(seed),
                        "model": str(model),
                        "h sharpness, largest": float(values.max()),
                        "last": float(values[-1]),
                        "error of smoothed loss": float(error.mean()),
                        "relative": float(error.mean() / raw[kept].mean()),
                        "distance at the end": float(last["distance"]),
                        "of the distance moved": float(last["distance"] / last["distance_moved"]),
                        "verdict": str(lane["verdict"].values),
                    }
                )
    return rows


def tables(results: Mapping[str, "xarray.Dataset"], window: int) -> dict[str, Rows]:
    """Claims against what was measured, and every lane.

    Args:
      results: optimiser -> its dataset.
      window: of the moving average.

    Returns:
      Heading -> rows.
    """
    lanes = [row for name, data in results.items() for row in lane_rows(data, name, window)]
    claims: Rows = []

    def cells(row: dict[str, Any]) -> tuple:
        return row["optimizer"], row["learning rate"], row["seed"]

    by_lane = {(*cells(row), row["model"]): row for row in lanes}
    # The edge is there to be modelled where the optimiser reached it.
    arrived = [
        row
        for row in lanes
        if row["model"] == "optimizer" and row["h sharpness, largest"] > EDGE * _ARRIVED
    ]

    def claim(text: str, holds: list[bool], measured: str) -> None:
        share = f"{sum(holds)} of {len(holds)} lanes"
        verdict = "yes" if holds and all(holds) else "no"
        claims.append({"claim": text, "measured": f"{share}; {measured}", "holds": verdict})

    def of_model(model: str) -> list[float]:
        keys = [(*cells(row), model) for row in arrived]
        return [by_lane[key]["h sharpness, largest"] for key in keys if key in by_lane]

    def compare(text: str, first: str, second: str, column: str) -> None:
        pairs = [
            (by_lane[(*cells(row), first)][column], by_lane[(*cells(row), second)][column])
            for row in arrived
            if (*cells(row), first) in by_lane and (*cells(row), second) in by_lane
        ]
        if pairs:
            ratios = [one / two for one, two in pairs]
            claim(
                text, [one < two for one, two in pairs], f"ratio {np.median(ratios):.3g} (median)"
            )

    tops = of_model("central")
    if tops:
        claim(
            "the central flow's effective sharpness does not pass 2 (by more than 1%)",
            [top < 1.01 * EDGE for top in tops],
            f"largest {max(tops):.4f}",
        )
    tops = of_model("stable")
    if tops:
        claim(
            "the stable flow's passes it",
            [top > 1.01 * EDGE for top in tops],
            f"largest {min(tops):.3g} to {max(tops):.3g}",
        )
    loss, far = "error of smoothed loss", "distance at the end"
    for first, second in (("central", "stable"), ("rod", "stable"), ("edge", "stable"),
                          ("rod", "central"), ("edge", "central")):  # fmt: skip
        compare(f"{first} flow's {loss} is below {second} flow's", first, second, loss)
        compare(f"{first} flow's {far} is below {second} flow's", first, second, far)
    return {"Claims": claims, "Every lane": lanes}


def joined(results: Mapping[str, "xarray.Dataset"]) -> "xarray.Dataset":
    """An empty dataset with the attrs of all sweeps together.

    Args:
      results: optimiser -> its dataset.

    Returns:
      The dataset.
    """
    import xarray

    parts = list(results.values())
    attrs = dict(parts[0].attrs)
    attrs["wall_seconds"] = sum(part.attrs["wall_seconds"] for part in parts)
    attrs["lanes"] = "; ".join(dict.fromkeys(part.attrs["lanes"] for part in parts))
    return xarray.Dataset(attrs=attrs)


@style()
def draw(results: Mapping[str, "xarray.Dataset"], window: int) -> dict[str, "Figure"]:
    """A figure an optimiser: sharpness, loss and distance, a column a learning rate.

    Args:
      results: optimiser -> its dataset; the first seed is drawn.
      window: of the moving average.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    for name, dataset in results.items():
        rates = dataset["learning_rate"].values
        figure = new_figure(1 + 4.5 * len(rates), 8.5, name.replace("_", " "))
        panels = figure.subplots(3, len(rates), sharex=True, squeeze=False)
        sharpness = effective(dataset).isel(seed=0)
        for column, rate in enumerate(rates):
            lanes = dataset.isel(seed=0).sel(learning_rate=rate)
            top, middle, bottom = panels[:, column]
            top.set_title(f"learning rate {number(rate)}")
            raw = lanes["loss"].sel(model="optimizer")
            middle.plot(raw["step"], raw, color="0.85", linewidth=0.8, label="optimizer, raw")
            for model in dataset["model"].values:
                line = {"color": COLORS[str(model)], "label": str(model), "linewidth": 1.4}
                values = sharpness.sel(learning_rate=rate, model=model)
                top.plot(values["step"], values, **line)
                lane = lanes.sel(model=model)
                loss = lane["predicted_loss"].values
                if model == "optimizer":
                    loss, line["label"] = smoothed(loss, window), "optimizer, smoothed"
                middle.plot(lane["step"], loss, **line)
                if model != "optimizer":
                    bottom.plot(lane["step"], lane["distance"], **line)
            top.axhline(EDGE, color="black", linestyle=":", linewidth=1)
            arrived = float(sharpness.sel(learning_rate=rate, model="optimizer").max())
            top.set_ylim(0, max(2 * EDGE, 1.1 * arrived))
            middle.set_yscale("log")
            bottom.set_xlabel("step")
        panels[0, 0].set_ylabel("learning rate x effective sharpness")
        panels[1, 0].set_ylabel("loss, averaged over the oscillation")
        panels[2, 0].set_ylabel("distance to the optimizer")
        panels[1, 0].legend(fontsize=8)
        figures[f"central_flows_{name}"] = figure
    return figures
