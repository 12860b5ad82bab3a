"""What playing a GAN in one way or another gave: tables, claims and figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from driftlab import plot

if TYPE_CHECKING:
    import xarray

LABELS = {
    "simultaneous": "simultaneous SGD",
    "alternating": "alternating SGD",
    "cancelled": "simultaneous, interaction cancelled",
    "self_strengthened": "simultaneous, self terms strengthened",
    "sga": "symplectic gradient adjustment",
    "consensus": "consensus optimisation",
    "rk4": "Runge-Kutta 4",
    "adam": "alternating Adam",
}
_COLORS = dict(
    zip(
        LABELS,
        ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#d55e00", "#000000", "#999999"),
        strict=True,
    )
)
_COMPETITIVE = 1.1  # at most this many times the other's distance


def final_distances(dataset: "xarray.Dataset") -> "xarray.DataArray":
    """Classifier-FID over the last quarter of the run, infinite for lanes that diverged.

    The mean over its records: a game goes round, and one record is a point of the circle.

    Args:
      dataset: the sweep's result.

    Returns:
      Over learning_rate, ratio, seed and play.
    """
    last = _late(dataset["classifier_fid"])
    return last.where((dataset["verdict"] == "ok") & last.notnull(), np.inf)


def best_lanes(dataset: "xarray.Dataset") -> dict[str, tuple[float, float]]:
    """For each method the rate and ratio of the lowest median final distance over seeds.

    Args:
      dataset: the sweep's result.

    Returns:
      Method -> (learning rate, ratio).
    """
    medians = final_distances(dataset).median("seed")
    found = {}
    for method in dataset.play.values:
        table = medians.sel(play=method).transpose("learning_rate", "ratio")
        row, column = np.unravel_index(int(table.values.argmin()), table.shape)
        rate, ratio = dataset.learning_rate.values[row], dataset.ratio.values[column]
        found[str(method)] = (float(rate), float(ratio))
    return found


def tables(dataset: "xarray.Dataset", ends: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Claims against what was measured, the best of every method, and the scale.

    Args:
      dataset: the sweep's result.
      ends: of the problem.

    Returns:
      Heading -> rows; no claims where the methods that they compare are not in the run.
    """
    final, best = final_distances(dataset), best_lanes(dataset)
    rows = []
    for method, (rate, ratio) in best.items():
        seeds = final.sel(play=method, learning_rate=rate, ratio=ratio).values
        lane = dataset.sel(play=method, learning_rate=rate, ratio=ratio)
        every = np.sort(final.sel(play=method).values.ravel())
        rows.append(
            {
                "method": LABELS[method],
                "best rate": rate,
                "ratio": ratio,
                "classifier-FID, median": _finite(np.median(seeds)),
                "over seeds": [_finite(seeds.min()), _finite(seeds.max())],
                "classifier-IS": float(_late(lane.classifier_is).median()),
                "best 30% of lanes": _finite(np.median(every[: max(1, round(0.3 * every.size))])),
                "diverged": f"{int(np.isinf(every).sum())} of {every.size}",
            }
        )
    scale = [
        {
            "images": name,
            **{
                label: float(ends[name][key])
                for label, key in [
                    ("classifier-FID", "classifier_fid"),
                    ("classifier-IS", "classifier_is"),
                ]
            },
        }
        for name in ("real", "noise")
    ]
    scale[0]["images"] = f"real test images (classifier's accuracy {ends['accuracy']:.3f})"
    claims = _claims(final, best)
    return {
        **({"Claims (Rosca et al. 2021)": claims} if claims else {}),
        "The best rate of every method": rows,
        "The scale": scale,
    }


def _claims(final: "xarray.DataArray", best: Mapping[str, tuple[float, float]]) -> list[dict]:
    """The published comparisons of two methods, where both are in the run."""
    found = []

    def at_best(method: str) -> np.ndarray:
        rate, ratio = best[method]
        return final.sel(play=method, learning_rate=rate, ratio=ratio).values

    def compare(claim: str, better: str, other: str, factor: float = 1.0) -> None:
        if better not in best or other not in best:
            return
        mine, theirs = at_best(better), at_best(other)
        gap = factor * np.median(theirs) - np.median(mine)
        # A seed that diverged leaves no standard error.
        known = mine.size > 1 and np.isfinite(mine).all() and np.isfinite(theirs).all()
        error = ((mine.var(ddof=1) + theirs.var(ddof=1)) / mine.size) ** 0.5 if known else 0.0
        # An allowance decides by itself; a difference has to exceed two standard errors.
        sure = factor != 1 or abs(gap) > 2 * error
        found.append(
            {
                "claim": claim,
                "measured": f"{np.median(mine):.3g} against {np.median(theirs):.3g}, each at its "
                f"best rate; standard error {f'{error:.2g}' if known else 'unknown'}",
                "holds": ("yes" if gap > 0 else "no") if sure else "within error",
            }
        )

    def lane_by_lane(claim: str, better: str, other: str) -> None:
        """Lanes of one rate, a ratio of 1 and one seed, by a sign test at two deviations."""
        if better not in best or other not in best:
            return
        equal = final.sel(ratio=final.ratio[np.isclose(final.ratio, 1)])
        mine, theirs = (equal.sel(play=name).values.ravel() for name in (better, other))
        both = np.isfinite(mine) | np.isfinite(theirs)
        count, wins = int(both.sum()), int((mine < theirs)[both].sum())
        if count:
            sure = abs(wins - count / 2) > count**0.5
            found.append(
                {
                    "claim": claim,
                    "measured": f"lower on {wins} of {count} pairs of lanes",
                    "holds": ("yes" if wins > count / 2 else "no") if sure else "within error",
                }
            )

    compare("cancelling interaction terms improves simultaneous SGD", "cancelled", "simultaneous")
    lane_by_lane("the same, lane by lane at equal rates", "cancelled", "simultaneous")
    compare("alternating beats simultaneous SGD", "alternating", "simultaneous")
    lane_by_lane("the same, lane by lane at equal rates", "alternating", "simultaneous")
    compare(
        f"cancelled SGD is competitive with Adam (at most {_COMPETITIVE} times its distance)",
        "cancelled",
        "adam",
        _COMPETITIVE,
    )
    compare("cancelled SGD beats SGA", "cancelled", "sga")
    compare("cancelled SGD beats consensus optimisation", "cancelled", "consensus")
    compare("cancelled SGD beats Runge-Kutta", "cancelled", "rk4")
    if {"cancelled", "sga", "simultaneous"} <= set(best):
        spread = {m: float(np.ptp(at_best(m))) for m in ("cancelled", "sga", "simultaneous")}
        found.append(
            {
                "claim": "and varies less over seeds than SGA and simultaneous SGD",
                "measured": "ranges "
                + ", ".join(f"{spread[m]:.3g} ({m})" for m in ("cancelled", "sga", "simultaneous")),
                "holds": "yes" if spread["cancelled"] == min(spread.values()) else "no",
            }
        )
    return found


def _late(values: "xarray.DataArray") -> "xarray.DataArray":
    """The mean over the last quarter of the run; NaN if a record of it is missing."""
    return values.isel(step=values.step >= 0.75 * values.step[-1]).mean("step", skipna=False)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def draw(
    dataset: "xarray.Dataset", ends: Mapping[str, Any], images: np.ndarray
) -> dict[str, Figure]:
    """The figures.

    Args:
      dataset: the sweep's result.
      ends: of the problem.
      images: real ones, `(n, height, width, channels)`, from -1 to 1.

    Returns:
      File name without ending -> figure.
    """
    return {
        "gan_drift_curves": _curves(dataset, ends),
        "gan_drift_rates": _rates(dataset, ends),
        "gan_drift_samples": _samples(dataset, images),
    }


def _curves(dataset: "xarray.Dataset", ends: Mapping[str, Any]) -> Figure:
    """Both scores over the iterations, at each method's best rate."""
    with plot.style():
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for method, (rate, ratio) in best_lanes(dataset).items():
            lane = dataset.sel(play=method, learning_rate=rate, ratio=ratio)
            for panel, name in zip(panels, ("classifier_fid", "classifier_is"), strict=True):
                values = lane[name].transpose("seed", "step").values
                if not np.isfinite(values).any():
                    continue
                middle = np.median(values, axis=0)
                panel.plot(
                    dataset.step,
                    middle,
                    color=_COLORS[method],
                    label=f"{LABELS[method]}, {rate:.3g}",
                )
                low, high = values.min(axis=0), values.max(axis=0)
                panel.fill_between(dataset.step, low, high, color=_COLORS[method], alpha=0.15, lw=0)
        for panel, name in zip(panels, ("classifier_fid", "classifier_is"), strict=True):
            for end, text in (("real", "real test images"), ("noise", "noise")):
                value = ends[end][name]
                panel.axhline(value, color="#666666", linestyle="--", linewidth=1)
                panel.annotate(
                    text, (0.99, value), (0, 3), ("axes fraction", "data"), "offset points",
                    ha="right", fontsize=8,
                )  # fmt: skip
            panel.set_xlabel("iteration")
        panels[0].set_yscale("log")
        panels[0].set_ylabel("classifier-FID (lower is better)")
        panels[1].set_ylabel("classifier-IS (higher is better)")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title="method, its best learning rate (median and range over seeds)",
        )
    return figure


def _rates(dataset: "xarray.Dataset", ends: Mapping[str, Any]) -> Figure:
    """The final distance over learning rates, a panel a ratio; diverged seeds at the top."""
    final = final_distances(dataset)
    ratios = dataset.ratio.values
    with plot.style():
        figure = Figure(figsize=(max(7.0, 4.2 * len(ratios)), 5.2), layout="constrained")
        panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
        top = 1.5 * max(
            float(final.where(np.isfinite(final)).max()), float(ends["noise"]["classifier_fid"])
        )
        for panel, ratio in zip(panels, ratios, strict=True):
            for place, method in enumerate(dataset.play.values):
                lanes = final.sel(play=method, ratio=ratio).transpose("learning_rate", "seed")
                # side by side, so that no method hides another
                x = dataset.learning_rate.values * 1.03 ** (place - len(dataset.play) / 2)
                middle = np.median(lanes.values, axis=1)
                alive = np.isfinite(middle)
                color = _COLORS[str(method)]
                panel.plot(
                    x[alive], middle[alive], "o-", color=color, ms=4, label=LABELS[str(method)]
                )
                for position, seeds in zip(x, lanes.values, strict=True):
                    known = seeds[np.isfinite(seeds)]
                    if known.size:
                        panel.vlines(position, known.min(), known.max(), color=color, alpha=0.5)
                    if known.size < seeds.size:
                        panel.plot(position, top, "x", color=color, ms=6)
            panel.axhline(ends["real"]["classifier_fid"], color="#666666", ls="--", lw=1)
            panel.axhline(ends["noise"]["classifier_fid"], color="#666666", ls=":", lw=1)
            panel.set(xscale="log", yscale="log", xlabel="learning rate of the discriminator")
            rates = dataset.learning_rate.values
            panel.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
            panel.xaxis.set_minor_locator(NullLocator())
            if len(ratios) > 1:
                panel.set_title(f"generator's rate {ratio:g} times that")
        panels[0].set_ylabel("final classifier-FID")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title="median and range over seeds; crosses: diverged; dashed: real, dotted: noise",
        )
    return figure


def _samples(dataset: "xarray.Dataset", images: np.ndarray) -> Figure:
    """A row of samples a method, of its median seed at its best rate, under real images."""
    final, rows = final_distances(dataset), [("real images", images)]
    for method, (rate, ratio) in best_lanes(dataset).items():
        seeds = final.sel(play=method, learning_rate=rate, ratio=ratio).values
        middle = int(np.argsort(seeds)[(seeds.size - 1) // 2])
        lane = dataset.sel(play=method, learning_rate=rate, ratio=ratio).isel(seed=middle, step=-1)
        text = (
            f"{LABELS[method]}\nFID {seeds[middle]:.3g}" if np.isfinite(seeds[middle]) else method
        )
        rows.append((text, lane.samples.values))
    with plot.style():
        figure = Figure(figsize=(9.5, 0.62 * len(rows)), layout="constrained")
        for panel, (text, many) in zip(figure.subplots(len(rows), 1), rows, strict=True):
            strip = np.concatenate(list(np.clip((many + 1) / 2, 0, 1)), axis=1)
            panel.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=1, aspect="equal")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(False)
            panel.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    return figure
