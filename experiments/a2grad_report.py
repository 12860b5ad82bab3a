"""What A2Grad and its rivals came to: the best of each grid, claims and tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import xarray

Results = Mapping[str, Mapping[str, "xarray.Dataset"]]
PUBLISHED = ("uniform", "incremental", "exponential")
RIVALS = ("adam", "amsgrad")
# What the paper searched; the runs search more.
PAPER_GRID = {
    "beta": (10.0, 50.0, 100.0, 1000.0),
    "lipschitz": (0.1, 1.0, 10.0),
    "learning_rate": (1e-4, 1e-3, 1e-2, 1e-1),
}
# End values of the paper's figure 1, read off its curves to 0.001.
FIGURE_1_COLUMNS = (*RIVALS, *PUBLISHED)
FIGURE_1 = {
    "logistic": {
        "training loss": (0.286, 0.329, 0.222, 0.219, 0.236),
        "test accuracy": (0.9145, 0.904, 0.9256, 0.9246, 0.9261),
    },
    "network": {
        "training loss": (0.0048, 0.0, 0.0001, 0.0, 0.0013),
        "test accuracy": (0.9823, 0.9844, 0.9826, 0.9852, 0.9819),
    },
    "cifarnet": {
        "training loss": (1.021, 0.922, 0.967, 1.184, 0.900),
        "test accuracy": (0.677, 0.703, 0.688, 0.630, 0.710),
    },
}
WHOLE, PAPER = "whole", "paper's"


class Outcome(NamedTuple):
    """The best setting of a method: that of the lowest training loss at the end.

    Attributes:
      network: which.
      grid: "whole", or "paper's": those of its settings that the paper searched.
      method: which.
      setting: axis -> value.
      training_loss: the last one, on all the data, at the points where gradients are taken; here
        and below a mean over seeds.
      test_accuracy: likewise.
      average_loss: the training loss at A2Grad's averages; None for other methods.
      average_accuracy: the test accuracy there; likewise.
      roughness: standard deviation of the change of `log(training loss)` from record to record,
        over the second half of training.
      failed: the share of the grid's lanes that diverged.
      epochs: of each record.
      losses: the training loss of each record.
      accuracies: the test accuracy of each record.
    """

    network: str
    grid: str
    method: str
    setting: dict[str, float]
    training_loss: float
    test_accuracy: float
    average_loss: float | None
    average_accuracy: float | None
    roughness: float
    failed: float
    epochs: Float[np.ndarray, " records"]
    losses: Float[np.ndarray, " records"]
    accuracies: Float[np.ndarray, " records"]


def outcomes(results: Results) -> list[Outcome]:
    """The best of every method on every network, of each of the two grids.

    Args:
      results: network -> family -> dataset.

    Returns:
      The outcomes; without those of a method of which every lane diverged, or that the paper's
      grid lacks.
    """
    found = []
    for network, families in results.items():
        for dataset in families.values():
            for method in dataset.optimizer.values:
                lanes = dataset.sel({"optimizer": method})
                found.append(_best(network, WHOLE, str(method), lanes))
                if method in FIGURE_1_COLUMNS:
                    found.append(_best(network, PAPER, str(method), _as_searched(lanes)))
    return [outcome for outcome in found if outcome is not None]


def _as_searched(lanes: "xarray.Dataset") -> "xarray.Dataset":
    for axis, known in PAPER_GRID.items():
        if axis in lanes.dims:
            values = lanes[axis].values
            kept = np.isclose(values[:, None], known, rtol=1e-5).any(axis=1)
            lanes = lanes.isel({axis: np.flatnonzero(kept)})
    return lanes


def _best(network: str, grid: str, method: str, lanes: "xarray.Dataset") -> Outcome | None:
    axes = [str(name) for name in lanes.loss.dims if name not in ("seed", "step")]
    if 0 in lanes.sizes.values():
        return None
    seeds = ["seed"] if "seed" in lanes.dims else []
    ended = (lanes.verdict == "ok").all(seeds)
    final = lanes.training_loss.isel(step=-1).mean(seeds).where(ended)
    if not bool(final.notnull().any()):
        return None
    at = {str(name): int(index) for name, index in final.argmin(axes).items()}
    runs = lanes.isel(at)
    losses = runs.training_loss.transpose(..., "step").values
    changes = np.diff(np.log(losses[..., losses.shape[-1] // 2 :]), axis=-1)
    curves = runs[["training_loss", "evaluation_accuracy"]].mean(seeds)
    names = ["average_training_loss", "average_evaluation_accuracy"]
    average = runs[names].isel(step=-1).mean(seeds) if names[0] in runs else None
    return Outcome(
        network=network,
        grid=grid,
        method=method,
        setting={name: float(runs[name]) for name in axes},
        training_loss=float(curves.training_loss[-1]),
        test_accuracy=float(curves.evaluation_accuracy[-1]),
        average_loss=None if average is None else float(average.average_training_loss),
        average_accuracy=None if average is None else float(average.average_evaluation_accuracy),
        roughness=float(np.mean(np.std(changes, axis=-1))),
        failed=float((lanes.verdict != "ok").mean()),
        epochs=lanes.step.values / lanes.attrs["steps_per_epoch"],
        losses=curves.training_loss.values,
        accuracies=curves.evaluation_accuracy.values,
    )


def tables(found: Sequence[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """The claims, the best of each method, and the paper's figure beside the runs.

    Args:
      found: from `outcomes`.

    Returns:
      Heading -> rows.
    """
    networks = list(dict.fromkeys(o.network for o in found))
    best = [
        {
            "network": o.network,
            "grid": o.grid,
            "method": o.method,
            "best setting": ", ".join(f"{name} {value:.3g}" for name, value in o.setting.items()),
            "training loss": o.training_loss,
            "test accuracy": o.test_accuracy,
            "loss at xbar": o.average_loss,
            "accuracy at xbar": o.average_accuracy,
            "roughness": o.roughness,
            "diverged": f"{100 * o.failed:.0f}%",
        }
        for o in found
    ]
    result = {
        "Claims (Deng, Cheng & Lan 2018)": [
            row for name in networks for row in claims(found, name)
        ],
        "The best of each method": best,
    }
    figure = [row for name in networks for row in _figure_1(found, name)]
    return result | ({"Figure 1 (paper: measured on the paper's grid)": figure} if figure else {})


def claims(found: Sequence[Outcome], network: str) -> list[dict[str, Any]]:
    """The claims against one network's runs.

    Args:
      found: from `outcomes`.
      network: which; only "logistic" is convex.

    Returns:
      Rows of network, claim, measured, holds.
    """
    rows = []

    def add(grid: str, claim: str, measured: str, holds: bool) -> None:
        row = {"network": network, "grid": grid, "claim": claim, "measured": measured}
        rows.append(row | {"holds": "yes" if holds else "no"})

    for grid in (WHOLE, PAPER):
        here = {o.method: o for o in found if (o.network, o.grid) == (network, grid)}
        rivals = [here[name] for name in RIVALS if name in here]
        ours = [here[name] for name in PUBLISHED if name in here]
        if not rivals or not ours:
            continue
        rival = min(rivals, key=lambda o: o.training_loss)
        smooth = min(rivals, key=lambda o: o.roughness)
        accurate = max(rivals, key=lambda o: o.test_accuracy)
        against = f"; {rival.method} {rival.training_loss:.3g}"
        if network == "logistic":
            add(
                grid,
                "the three variants end below Adam and AMSGrad",
                _listed(ours, "training_loss") + against,
                all(o.training_loss < rival.training_loss for o in ours),
            )
            add(
                grid,
                "their curves are smoother",
                _listed(ours, "roughness") + f"; {smooth.method} {smooth.roughness:.2g}",
                all(o.roughness < smooth.roughness for o in ours),
            )
            gains = [100 * (o.test_accuracy - accurate.test_accuracy) for o in ours]
            add(
                grid,
                "their test accuracy is 1 to 2 points higher",
                ", ".join(f"{o.method} {gain:+.1f}" for o, gain in zip(ours, gains, strict=True))
                + f" points to {accurate.method}'s {100 * accurate.test_accuracy:.1f}%",
                all(round(gain, 1) >= 1 for gain in gains),
            )
        elif "incremental" in here:
            first = max(ours + rivals, key=lambda o: o.test_accuracy)
            add(
                grid,
                "incremental generalises best",
                _listed(ours + rivals, "test_accuracy"),
                first.method == "incremental",
            )
        ratios = [
            (o, here[f"{o.method} scalar"].training_loss / o.training_loss)
            for o in ours
            if f"{o.method} scalar" in here
        ]
        if ratios:
            add(
                grid,
                "one scale a tensor costs at least 5 times the training loss",
                ", ".join(f"{o.method} {ratio:.2g} times" for o, ratio in ratios),
                all(ratio >= 5 for _, ratio in ratios),
            )
    return rows


def _listed(found: Sequence[Outcome], name: str) -> str:
    return ", ".join(f"{o.method} {getattr(o, name):.3g}" for o in found)


def _figure_1(found: Sequence[Outcome], network: str) -> list[dict[str, Any]]:
    here = {o.method: o for o in found if (o.network, o.grid) == (network, PAPER)}
    rows = []
    for quantity, values in FIGURE_1.get(network, {}).items():
        row: dict[str, Any] = {"network": network, "quantity": quantity}
        for method, value in zip(FIGURE_1_COLUMNS, values, strict=True):
            measured = "-"
            if method in here:
                measured = f"{getattr(here[method], quantity.replace(' ', '_')):.4g}"
            row[method] = f"{value:g}: {measured}"
        rows.append(row)
    return rows


def whole(results: Results) -> "xarray.Dataset":
    """An empty dataset with the attrs of all sweeps together.

    Args:
      results: network -> family -> dataset.

    Returns:
      The dataset, for a report.
    """
    import xarray

    parts = [dataset for families in results.values() for dataset in families.values()]
    attrs = dict(parts[0].attrs)
    attrs["wall_seconds"] = sum(part.attrs["wall_seconds"] for part in parts)
    attrs["lanes"] = "; ".join(dict.fromkeys(part.attrs["lanes"] for part in parts))
    return xarray.Dataset(attrs=attrs)
