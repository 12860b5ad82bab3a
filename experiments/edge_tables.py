"""What the edge of stability claims, against what a run measured: plateaus, tables, claims."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.edge_methods import Method

if TYPE_CHECKING:
    import xarray

RISES = "loss_rises"


class Lane(NamedTuple):
    """What became of one lane.

    Attributes:
      learning_rate: h.
      seed: of its initialisation.
      verdict: the sweep's: "ok", "diverged", "nonfinite".
      verdict_step: the iteration of divergence; -1 for none.
      reached: the iteration at which the sharpness rose to the threshold; None if never.
      plateau: its median over the second half of what followed, over the threshold; else NaN.
      peak: the largest ratio to the threshold, after any fall from a start above it.
      rises_before: the share of records below the threshold before `reached` at which the step
        raises the loss; NaN for none.
      rises_after: that share of all records from there on; NaN for none.
      loss_reached: the loss there; NaN if never.
      loss: the last one.
    """

    learning_rate: float
    seed: int
    verdict: str
    verdict_step: int
    reached: int | None
    plateau: float
    peak: float
    rises_before: float
    rises_after: float
    loss_reached: float
    loss: float


def edge_index(ratio: Float[np.ndarray, " record"]) -> int | None:
    """The record at which a lane arrives at its edge.

    Args:
      ratio: sharpness over threshold at every record, without NaN.

    Returns:
      The first record at 1 or more that follows one below 1, for a start above the edge is not a
      rise to it; 0 if no record is below; None if the ratio never rises to 1.
    """
    below = np.flatnonzero(ratio < 1)
    if not below.size:
        return 0 if ratio.size else None
    above = np.flatnonzero(ratio[below[0] :] >= 1)
    return int(below[0] + above[0]) if above.size else None


def lanes(dataset: "xarray.Dataset", method: Method) -> list[Lane]:
    """What became of every lane of a method's sweep.

    Args:
      dataset: the sweep's result.
      method: the method.

    Returns:
      One entry a learning rate and seed.
    """
    found = []
    steps = dataset["step"].values
    for rate in dataset["learning_rate"].values:
        for seed in dataset["seed"].values:
            lane = dataset.sel(learning_rate=rate, seed=seed)
            ratio = lane[method.variable].values * float(rate) / method.constant
            known = np.isfinite(ratio)
            ratio, rises = ratio[known], lane[RISES].values[known]
            loss, at = lane["loss"].values[known], steps[known]
            index = edge_index(ratio)
            start = len(ratio) if index is None else index
            followed = ratio[start:]
            below = np.flatnonzero(ratio < 1)
            settled = ratio[below[0] :] if below.size else ratio
            found.append(
                Lane(
                    learning_rate=float(rate),
                    seed=int(seed),
                    verdict=str(lane["verdict"].values),
                    verdict_step=int(lane["verdict_step"].values),
                    reached=None if index is None else int(at[index]),
                    plateau=_median(followed[len(followed) // 2 :]),
                    peak=float(settled.max()) if settled.size else np.nan,
                    rises_before=_mean(rises[:start][ratio[:start] < 1]),
                    rises_after=_mean(rises[start:]),
                    loss_reached=float(loss[index]) if index is not None else np.nan,
                    loss=float(loss[-1]) if loss.size else np.nan,
                )
            )
    return found


def lane_rows(
    outcomes: Mapping[str, list[Lane]], methods: Mapping[str, Method]
) -> list[dict[str, Any]]:
    """The table of every lane.

    Args:
      outcomes: method name -> its lanes.
      methods: method name -> method.

    Returns:
      Rows.
    """
    rows = []
    for name, found in outcomes.items():
        constant = methods[name].constant
        for lane in found:
            on_edge = lane.reached is not None and lane.verdict == "ok"
            rows.append(
                {
                    "optimizer": name,
                    "learning rate": lane.learning_rate,
                    "seed": lane.seed,
                    "threshold": constant / lane.learning_rate,
                    "plateau x rate": lane.plateau * constant if on_edge else None,
                    "constant": constant,
                    "ratio": lane.plateau if on_edge else None,
                    "outcome": _outcome(lane),
                    "steps that raise the loss": _percent(
                        lane.rises_after if on_edge else lane.rises_before
                    ),
                    "final loss": lane.loss,
                }
            )
    return rows


def claim_rows(
    outcomes: Mapping[str, list[Lane]],
    methods: Mapping[str, Method],
    flow_peaks: Sequence[float],
    accuracy: float,
) -> list[dict[str, Any]]:
    """The published claims against what was measured.

    Args:
      outcomes: method name -> its lanes.
      methods: method name -> method.
      flow_peaks: gradient flow's largest sharpness within the time of each of gradient descent's
        lanes, over the lane's threshold; NaN where unknown, empty if the flow was not followed.
      accuracy: how far from its threshold a plateau may be, relatively.

    Returns:
      Rows of claim, measured, holds ("yes", "no", or "-" for nothing to judge by).
    """
    rows = []
    for name, found in outcomes.items():
        method = methods[name]
        on_edge = [lane for lane in found if lane.reached is not None and lane.verdict == "ok"]
        quantity = method.variable.replace("_", " ")
        value = f"{method.constant:.4g}"
        value = value if value == method.formula else f"{method.formula} = {value}"
        claim = f"{name}: {quantity} x rate settles at {value}"
        close = [abs(lane.plateau - 1) < accuracy for lane in on_edge]
        plateaus = np.array([lane.plateau for lane in on_edge]) * method.constant
        rows.append(_row(claim, close, _spread(plateaus), f"within {accuracy:.0%}"))
    everything = [
        lane
        for found in outcomes.values()
        for lane in found
        if lane.reached is not None and lane.verdict == "ok"
    ]
    after = np.array([lane.rises_after for lane in everything])
    rows.append(
        _row(
            "on the edge some steps raise the loss",
            [share > 0 for share in after],
            _spread(after, "{:.0%}") + " of the steps",
        )
    )
    rows.append(
        _row(
            "yet over many steps it falls",
            [lane.loss < lane.loss_reached for lane in everything],
            "final loss below that on arrival",
        )
    )
    descent = outcomes.get("gradient_descent", [])
    calm = [lane.rises_before for lane in descent if np.isfinite(lane.rises_before)]
    rows.append(
        _row(
            "below the edge no step of gradient descent raises the loss",
            [share == 0 for share in calm],
            "on " + _spread(calm, "{:.1%}") + " of the steps",
        )
    )
    peaks = [
        peak
        for peak, lane in zip(flow_peaks, descent, strict=False)
        if lane.reached is not None and lane.verdict == "ok" and np.isfinite(peak)
    ]
    rows.append(
        _row(
            "gradient flow sharpens past gradient descent's threshold in the same time",
            [peak > 1 + accuracy for peak in peaks],
            "to " + _spread(peaks) + " of it",
        )
    )
    return rows


def _spread(values: Any, form: str = "{:.4g}") -> str:
    if not len(values):
        return ""
    low, middle, high = (form.format(q(values)) for q in (np.min, np.median, np.max))
    return f"{low} .. {high}, median {middle}"


def _row(claim: str, holds: list[bool], measured: str, criterion: str = "") -> dict[str, Any]:
    if not holds:
        return {"claim": claim, "measured": "no lane to judge by", "holds": "-"}
    share = f"{sum(holds)} of {len(holds)} lanes" + (f" {criterion}" if criterion else "")
    return {
        "claim": claim,
        "measured": f"{measured}; {share}",
        "holds": "yes" if all(holds) else "no",
    }


def _outcome(lane: Lane) -> str:
    if lane.verdict != "ok":
        return f"{lane.verdict} at {lane.verdict_step}"
    if lane.reached is None:
        return f"below the edge: at most {lane.peak:.3g} of it"
    return f"on the edge from {lane.reached}"


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else np.nan


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else np.nan


def _percent(share: float) -> str | None:
    return None if np.isnan(share) else f"{share:.0%}"
