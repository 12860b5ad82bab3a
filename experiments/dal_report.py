"""What DAL and the fixed rates came to: outcomes over seeds, claims, tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from driftlab import plot

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, "xarray.Dataset"]]
DAL, FIXED, FULL = "dal", "fixed", "full_batch"


class Outcome(NamedTuple):
    """One rate, or power and cap, over its seeds.

    Attributes:
      batching: "full_batch" or "mini_batch".
      momentum: its decay.
      setting: the fixed rate, or DAL's power p.
      cap: of DAL's rate; None for a fixed rate.
      failed: seeds that diverged or did not halve the training loss.
      seeds: how many there are.
      training_loss: median over seeds of the last one, on all the data; NaN if all diverged.
      accuracy: mean over seeds of the last one, on held-out data; likewise.
      accuracy_error: its standard error over seeds; NaN for one seed.
      sharpness: median over seeds of the last one.
      sharpness_curve: medians over seeds of (training loss, sharpness), where both were recorded.
      rises: share of the steps that raise the loss, mean over seeds; NaN for mini-batches.
      largest_rise: `max_{j<k} loss_k / loss_j`, the largest seed's; NaN for mini-batches.
      curve: the median loss of each record's step; what the step's own batch has.
      rate: median of the rate over records and seeds.
      at_cap: share of the records with the rate at the cap.
    """

    batching: str
    momentum: float
    setting: float
    cap: float | None
    failed: int
    seeds: int
    training_loss: float
    accuracy: float
    accuracy_error: float
    sharpness: float
    sharpness_curve: Float[np.ndarray, "2 records"]
    rises: float
    largest_rise: float
    curve: Float[np.ndarray, " records"]
    rate: float
    at_cap: float | None

    @property
    def name(self) -> str:
        """As in a table."""
        return f"rate {self.setting:.4g}" if self.cap is None else f"DAL({self.setting:.4g})"


def outcomes(results: Results) -> list[Outcome]:
    """Every setting of a run.

    Args:
      results: batching -> method -> dataset.

    Returns:
      Fixed rates before DAL, for each batching and momentum.
    """
    found = []
    for batching, pair in results.items():
        for momentum in pair[FIXED].momentum.values:
            for dataset in (pair[FIXED], pair[DAL]):
                lanes = dataset.sel(momentum=momentum)
                found += [_outcome(batching, float(momentum), lane) for lane in _settings(lanes)]
    return found


def _settings(lanes: "xarray.Dataset") -> Iterator["xarray.Dataset"]:
    if "learning_rate" in lanes.dims:
        for rate in lanes.learning_rate.values:
            yield lanes.sel(learning_rate=rate)
        return
    for power in lanes.power.values[::-1]:
        for cap in lanes.max_learning_rate.values:
            yield lanes.sel(power=power, max_learning_rate=cap)


def _outcome(batching: str, momentum: float, lane: "xarray.Dataset") -> Outcome:
    """A setting's outcome; lane has the dimensions seed and step."""
    adjusted = "max_learning_rate" in lane.coords
    last = lane.isel(step=-1)
    halved = last.training_loss.values < lane.training_loss.isel(step=0).values / 2
    ended = (lane.verdict == "ok").values
    losses = lane.loss.transpose("seed", "step").values
    full = batching == FULL
    pairs = np.stack([lane.training_loss.median("seed"), lane.sharpness.median("seed")])
    accuracies = last.evaluation_accuracy.values
    cap = float(lane.max_learning_rate) if adjusted else None
    rates = lane.dal_learning_rate.values if cap is not None else lane.learning_rate.values
    return Outcome(
        batching=batching,
        momentum=momentum,
        setting=float(lane.power if adjusted else lane.learning_rate),
        cap=cap,
        failed=int((~(halved & ended)).sum()),
        seeds=lane.sizes["seed"],
        training_loss=_ignoring_nan(np.median, last.training_loss.values),
        accuracy=_ignoring_nan(np.mean, accuracies),
        accuracy_error=_ignoring_nan(_standard_error, accuracies),
        sharpness=_ignoring_nan(np.median, last.sharpness.values),
        sharpness_curve=pairs[:, np.isfinite(pairs).all(axis=0)],
        rises=_rises(losses) if full else np.nan,
        largest_rise=max(_largest_rise(curve) for curve in losses) if full else np.nan,
        curve=np.median(losses, axis=0),
        rate=_ignoring_nan(np.median, np.asarray(rates)),
        at_cap=None if cap is None else float(np.mean(rates[np.isfinite(rates)] >= cap)),
    )


def _ignoring_nan(function: Any, values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(function(kept)) if kept.size else float("nan")


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _rises(losses: Float[np.ndarray, "seed step"]) -> float:
    changes = np.diff(losses, axis=1)
    return float((changes > 0).sum() / max(np.isfinite(changes).sum(), 1))


def _largest_rise(losses: Float[np.ndarray, " step"]) -> float:
    kept = losses[np.isfinite(losses)]
    return float((kept / np.minimum.accumulate(kept)).max()) if kept.size else float("nan")


def best(found: Sequence[Outcome], larger: str = "") -> Outcome | None:
    """The outcome without a failed seed of the lowest training loss, or of the largest attribute.

    Args:
      found: what to choose from.
      larger: an attribute's name, of which the largest is best.

    Returns:
      It, or None if every one has a failed seed.
    """
    usable = [outcome for outcome in found if outcome.failed == 0]
    if not usable:
        return None
    if larger:
        return max(usable, key=lambda outcome: getattr(outcome, larger))
    return min(usable, key=lambda outcome: outcome.training_loss)


def tables(results: Results, reference_cap: float) -> dict[str, list[dict[str, Any]]]:
    """The claims against what was measured, and every setting.

    Args:
      results: batching -> method -> dataset.
      reference_cap: the cap of DAL that the claims are about.

    Returns:
      Heading -> rows.
    """
    found = outcomes(results)
    claims = []
    for batching, momentum in dict.fromkeys((o.batching, o.momentum) for o in found):
        here = [o for o in found if (o.batching, o.momentum) == (batching, momentum)]
        fixed = [o for o in here if o.cap is None]
        adjusted = [o for o in here if o.cap is not None and np.isclose(o.cap, reference_cap)]
        where = {"batches": batching.replace("_", " "), "momentum": momentum}
        claims += [where | row for row in _claims(fixed, adjusted)]
    rows = [
        {
            "batches": o.batching.replace("_", " "),
            "momentum": o.momentum,
            "method": o.name,
            "cap": o.cap,
            "training loss": o.training_loss,
            "test accuracy": o.accuracy,
            "failed seeds": f"{o.failed} of {o.seeds}",
            "sharpness": o.sharpness,
            "median rate": o.rate,
            "at the cap": None if o.at_cap is None else f"{100 * o.at_cap:.0f}%",
            "steps that raise the loss": _percent(o.rises),
            "largest rise": None if np.isnan(o.largest_rise) else o.largest_rise,
        }
        for o in found
    ]
    return {f"Claims (Rosca et al. 2023), cap {reference_cap:g}": claims, "Every setting": rows}


def _percent(share: float) -> str | None:
    return None if np.isnan(share) else f"{100 * share:.1f}%"


def _claims(fixed: Sequence[Outcome], adjusted: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The rows of one batching and momentum."""
    one = next((o for o in adjusted if np.isclose(o.setting, 1)), None)
    half = next((o for o in adjusted if np.isclose(o.setting, 0.5)), None)
    rival, accurate = best(fixed), best(fixed, "accuracy")
    rows = []

    def add(claim: str, measured: str, holds: Any) -> None:
        text = holds if isinstance(holds, str) else "yes" if holds else "no"
        rows.append({"claim": claim, "measured": measured, "holds": text})

    failed = [f"{o.failed} of {o.seeds} seeds fail with {o.name}" for o in adjusted]
    add(
        "DAL(p) trains at every p, without a rate to tune",
        "; ".join(failed)
        + f"; of {len(fixed)} fixed rates {sum(o.failed > 0 for o in fixed)} fail",
        not any(o.failed for o in adjusted),
    )
    if rival is None or accurate is None:
        return rows
    if one is not None and not np.isnan(one.rises):
        add(
            "DAL(1) has fewer steps that raise the loss than the best fixed rate",
            f"{_percent(one.rises)}; {rival.name}: {_percent(rival.rises)}",
            one.rises < rival.rises,
        )
        add(
            "DAL(1) removes the large instabilities",
            f"the loss rises by {one.largest_rise:.3g} times at most; {rival.name}: "
            f"{rival.largest_rise:.3g} times",
            one.largest_rise < rival.largest_rise,
        )
    for o in (half, one):
        if o is None:
            continue
        ratio = o.training_loss / rival.training_loss
        add(
            f"{o.name} trains further than the best fixed rate",
            f"training loss {o.training_loss:.3g}, {ratio:.2g} times that of {rival.name}"
            + _reached(o, rival),
            ratio < 1 and o.failed == 0,
        )
        difference = 100 * (o.accuracy - accurate.accuracy)
        error = 100 * float(np.hypot(o.accuracy_error, accurate.accuracy_error))
        add(
            f"{o.name} generalises better than the best fixed rate",
            f"test accuracy {100 * o.accuracy:.1f}%, {difference:+.1f} points to "
            f"{accurate.name}; standard error {error:.1f}",
            "within error" if abs(difference) < 2 * error else difference > 0 and o.failed == 0,
        )
    if one is not None:
        # At equal loss: the sharpness of a cross-entropy falls with the loss itself.
        level = max(one.training_loss, rival.training_loss)
        ours, theirs = _sharpness_at(one, level), _sharpness_at(rival, level)
        add(
            f"the sharpness is lower with DAL(1), at training loss {level:.2g}",
            f"{ours:.3g}; {rival.name}: {theirs:.3g}",
            ours < theirs,
        )
    return rows


def _sharpness_at(outcome: Outcome, level: float) -> float:
    """The sharpness at the first record whose training loss is not above the level."""
    losses, sharpness = outcome.sharpness_curve
    reached = np.flatnonzero(losses <= level * (1 + 1e-6))
    return float(sharpness[reached[0]]) if reached.size else float("nan")


def _reached(outcome: Outcome, rival: Outcome) -> str:
    """When a full-batch curve first reaches where the rival's ends."""
    if outcome.batching != FULL:
        return ""
    reached = np.flatnonzero(outcome.curve <= rival.curve[-1])
    total = len(rival.curve) - 1
    return f", which it reaches {f'at record {reached[0]} of {total}' if reached.size else 'never'}"


def draw(results: Results, reference_cap: float) -> dict[str, "Figure"]:
    """The figures.

    Args:
      results: batching -> method -> dataset.
      reference_cap: the cap of DAL in the figures of a single one.

    Returns:
      File name without ending -> figure.
    """
    found = outcomes(results)
    figures = {}
    for batching, pair in results.items():
        here = [o for o in found if o.batching == batching]
        adjusted = pair[DAL].sel(max_learning_rate=reference_cap, method="nearest", drop=True)
        adjusted = _with_labels(adjusted)
        figures[f"dal_training_loss_{batching}"] = _against_fixed(pair[FIXED], here, reference_cap)
        figures[f"dal_loss_curves_{batching}"] = _curves(adjusted, here)
        figures[f"dal_rate_{batching}"] = plot.curves(adjusted, "dal_learning_rate", "power")
        if pair[DAL].sizes["max_learning_rate"] > 1:
            figures[f"dal_cap_{batching}"] = plot.final_value(
                _with_labels(pair[DAL]), "training_loss", "max_learning_rate"
            )
    return figures


def _with_labels(dataset: "xarray.Dataset") -> "xarray.Dataset":
    found = dataset.copy()
    for name, label in (
        ("power", "power p"),
        ("max_learning_rate", "cap on the learning rate"),
        ("dal_learning_rate", "DAL's learning rate"),
        ("training_loss", "training loss"),
    ):
        if name in found.variables:
            found[name].attrs = {"long_name": label}
    return found


def _against_fixed(
    fixed: "xarray.Dataset", found: Sequence[Outcome], reference_cap: float
) -> "Figure":
    """Final training loss against the fixed rate, with DAL's as levels beside it."""
    figure = plot.final_value(_with_labels(fixed), "training_loss")
    panel = figure.axes[0]
    several = fixed.sizes["momentum"] > 1
    for o in found:
        if o.cap is None or not np.isclose(o.cap, reference_cap) or o.failed:
            continue
        style = "--" if o.momentum == float(fixed.momentum.values[0]) else ":"
        panel.axhline(o.training_loss, color="#666666", linestyle=style, linewidth=1)
        name = f"{o.name}, momentum {o.momentum:.4g}" if several else o.name
        at = (0.01, o.training_loss)
        panel.annotate(name, at, (0, 2), ("axes fraction", "data"), "offset points", fontsize=8)
    panel.autoscale(axis="y")
    return figure


def _curves(adjusted: "xarray.Dataset", found: Sequence[Outcome]) -> "Figure":
    """Training loss along training for each power, and that of the best fixed rate."""
    figure = plot.curves(adjusted, "loss", "power")
    for panel, momentum in zip(figure.axes, adjusted.momentum.values, strict=False):
        rival = best([o for o in found if o.cap is None and o.momentum == float(momentum)])
        if rival is None:
            continue
        panel.plot(adjusted.step.values, rival.curve, color="#CC3311", linewidth=1, linestyle="--")
        end = (adjusted.step.values[-1], rival.curve[-1])
        panel.annotate(
            rival.name, end, (-4, 5), textcoords="offset points", ha="right", color="#CC3311"
        )
    return figure
