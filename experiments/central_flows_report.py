"""What the models of the edge of stability came to: the claims, and every lane."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import xarray

EDGE = 2.0
_ARRIVED = 0.99
# How near a predicted mean square counts as right.
_NEAR = 0.25
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
            measured = lanes["oscillation"].sel(model="optimizer").values
            late = np.arange(len(raw)) >= len(raw) // 2
            for model in dataset["model"].values:
                lane = lanes.sel(model=model)
                values = sharpness.sel(learning_rate=rate, seed=seed, model=model)
                kept = late & np.isfinite(raw)
                error = np.abs(lane["predicted_loss"].values - raw)[kept]
                last = {name: lane[name].values[-1] for name in ("distance", "distance_moved")}
                oscillation = lane["oscillation"].values[kept].mean()
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
                        "mean square of the oscillation": float(oscillation),
                        "of the optimizer's": float(oscillation / measured[kept].mean()),
                        "verdict": str(lane["verdict"].values),
                    }
                )
    return rows


def direction_rows(dataset: "xarray.Dataset", optimizer: str, window: int) -> Rows:
    """A row an eigenvector of the central flow's covariance: its variance and the optimiser's.

    Means over the same steps as in `lane_rows`.

    Args:
      dataset: of one optimiser.
      optimizer: its name.
      window: of the moving average.

    Returns:
      The rows; none for a direction with less than a thousandth of the largest variance.
    """
    rows: Rows = []
    names = ("variance_predicted", "variance_measured")
    lanes = (
        dataset[list(names)].sel(model="central") if "central" in dataset["model"].values else None
    )
    for rate in dataset["learning_rate"].values if lanes is not None else ():
        for seed in dataset["seed"].values:
            assert lanes is not None
            lane = lanes.sel(learning_rate=rate, seed=seed)
            steps = len(lane["step"])
            late = slice(steps // 2, steps - window // 2)
            predicted, measured = (
                lane[name].transpose("step", ...).values[late].mean(0) for name in names
            )
            # Less is the rounding of the others.
            for index in np.flatnonzero(predicted > 1e-3 * np.nanmax(predicted, initial=0)):
                rows.append(
                    {
                        "optimizer": optimizer,
                        "learning rate": float(rate),
                        "seed": int(seed),
                        "eigenvector": int(index) + 1,
                        "predicted": float(predicted[index]),
                        "measured": float(measured[index]),
                        "predicted over measured": float(predicted[index] / measured[index]),
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

    def compare(text: str, first: str, second: str, column: str) -> None:
        pairs = [
            (by_lane[(*cells(row), first)][column], by_lane[(*cells(row), second)][column])
            for row in arrived
            if (*cells(row), first) in by_lane and (*cells(row), second) in by_lane
        ]
        if pairs:
            # A lane that has ended in NaN does not hold, and has no ratio.
            ratios = [one / two for one, two in pairs if np.isfinite(one / two)]
            shown = f"ratio {np.median(ratios):.3g} (median)" if ratios else "no finite ratio"
            claim(text, [one < two for one, two in pairs], shown)

    def bounded(text: str, model: str, column: str, holds: Callable[[float], bool]) -> None:
        keys = [(*cells(row), model) for row in arrived]
        values = [by_lane[key][column] for key in keys if key in by_lane]
        if values:
            shown = f"{min(values):.4g} to {max(values):.4g}"
            claim(text, [holds(value) for value in values], shown)

    top, square = "h sharpness, largest", "of the optimizer's"
    bounded(
        "the central flow's effective sharpness does not pass 2 (by more than 1%)",
        "central", top, lambda value: value < 1.01 * EDGE,
    )  # fmt: skip
    bounded("the stable flow's passes it", "stable", top, lambda value: value > 1.01 * EDGE)
    for model in ("central", "rod", "edge"):
        bounded(
            f"{model} flow's mean square of the oscillation is the optimizer's within {_NEAR:.0%}",
            model, square, lambda value: abs(value - 1) < _NEAR,
        )  # fmt: skip
    loss, far = "error of smoothed loss", "distance at the end"
    for first, second in (("central", "stable"), ("rod", "stable"), ("edge", "stable"),
                          ("rod", "central"), ("edge", "central")):  # fmt: skip
        compare(f"{first} flow's {loss} is below {second} flow's", first, second, loss)
        compare(f"{first} flow's {far} is below {second} flow's", first, second, far)
    directions = [
        row for name, data in results.items() for row in direction_rows(data, name, window)
    ]
    return {"Claims": claims, "Every lane": lanes, "Variance by direction": directions}


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
