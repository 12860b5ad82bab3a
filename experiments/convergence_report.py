"""The order of an error, the theory's beside the measured ones, and their figures."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from driftlab import flows
from driftlab.plot.style import LINE_COLORS, new_figure, style
from experiments.convergence_cases import CASES, FIXED_TIME

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# An error this many times the parameters' rounding is known to better than a per cent.
_ROUNDING = 300 * np.finfo(np.float64).eps


def measured_order(
    scaled: Float[np.ndarray, " rate"], errors: Float[np.ndarray, " rate"], floor: float
) -> dict[str, Any]:
    """The order of an error over the smallest decade of learning rates above rounding.

    The error's constant itself varies with h, by a share proportional to h: the order is p of
    `log(error) = c + p log h + a h`, fitted by least squares; the plain slope has a = 0.

    Args:
      scaled: learning rates, descending.
      errors: one each.
      floor: errors below this are rounding.

    Returns:
      `order`, `slope`, the `window` in scaled learning rates, and the `error` at its largest. NaN
      where less than a decade, or three learning rates, are above rounding.
    """
    # Nothing counts from the first that is rounding on, nor before the last that blew up.
    good = np.cumprod(~(errors <= floor)).astype(bool)
    good &= np.cumprod(np.isfinite(errors[::-1]) | ~good[::-1])[::-1].astype(bool)
    nothing = {"order": np.nan, "slope": np.nan, "window": None, "error": np.nan}
    if not good.any():
        return nothing
    smallest = scaled[good][-1]
    # The smallest window of a decade or more.
    start = np.flatnonzero(scaled >= 10 * smallest * (1 - 1e-12))
    if not len(start):
        return nothing
    window = slice(int(start[-1]), int(np.flatnonzero(good)[-1]) + 1)
    rates, values = scaled[window], errors[window]
    if len(rates) < 4:
        return nothing
    design = np.stack([np.ones_like(rates), np.log(rates), rates], axis=1)
    order = np.linalg.lstsq(design, np.log(values), rcond=None)[0][1]
    return {
        "order": float(order),
        "slope": flows.fitted_order(rates, values),
        "window": [float(rates[0]), float(rates[-1])],
        "error": float(values[0]),
    }


def tables(dataset: "xarray.Dataset") -> dict[str, list[dict[str, Any]]]:
    """The theory's order against the measured one.

    Args:
      dataset: of `run`.

    Returns:
      Heading -> rows, one table a problem.
    """
    found = {}
    for name in dataset.problem.values:
        here, rows = dataset.sel(problem=name), []
        floor = _ROUNDING * float(here["size"])
        for case in CASES:
            errors = here.error.sel(case=case.name).values
            if np.isnan(errors).all():
                continue
            claim = case.order if case.compared == FIXED_TIME else case.order + 1
            got = measured_order(here.scaled_learning_rate.values, errors, floor)
            holds = abs(got["order"] - claim) <= float(here.tolerance)
            window = got["window"] and [rate / case.expansion for rate in got["window"]]
            rows.append(
                {
                    "flow": case.name,
                    "after": case.compared,
                    "claim": claim,
                    "measured": got["order"],
                    "plain slope": got["slope"],
                    "h lambda_0": window,
                    "largest error there": got["error"],
                    "holds": "yes" if holds else "no",
                }
            )
        found[f"Orders on the {name} (sharpness {float(here.sharpness):.4g})"] = rows
    return found


@style()
def draw(dataset: "xarray.Dataset") -> dict[str, "Figure"]:
    """The errors against the learning rate, a figure a problem, a panel a family of flows.

    Args:
      dataset: of `run`.

    Returns:
      File name without ending -> figure. Dotted: the theory's slope, from the smallest learning
      rate that is above rounding.
    """
    figures, groups = {}, list(dict.fromkeys(case.group for case in CASES))
    for name in dataset.problem.values:
        here = dataset.sel(problem=name)
        scaled, floor = here.scaled_learning_rate.values, _ROUNDING * float(here["size"])
        rows = -(-len(groups) // 2)
        figure = new_figure(9.6, 0.6 + 4 * rows, f"Distance from the optimiser: {name}")
        grid = figure.subplots(rows, 2, sharey=True, squeeze=False)
        for unused in grid.flat[len(groups) :]:
            unused.remove()
        for panel, group in zip(grid.flat, groups, strict=False):
            panel.set(title=group.capitalize(), xscale="log", yscale="log")
            shown = [case for case in CASES if case.group == group]
            for index, case in enumerate(shown):
                errors, rates = here.error.sel(case=case.name).values, scaled / case.expansion
                good = np.isfinite(errors) & (errors > 0)
                if not good.any():
                    continue
                color = LINE_COLORS[index % len(LINE_COLORS)]
                mark = "o" if index < len(LINE_COLORS) else "s"
                panel.plot(
                    rates[good], errors[good], mark, color=color, markersize=4, label=case.name
                )
                above = np.flatnonzero(good & (errors > floor))
                if len(above):
                    claim = case.order + (case.compared != FIXED_TIME)
                    last = above[-1]
                    guide = errors[last] * (rates / rates[last]) ** claim
                    panel.plot(rates, guide, ":", color=color, linewidth=1)
            panel.axhline(floor, color="#A6A6A6", linewidth=0.8)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7.5)
        for panel in figure.axes:
            panel.set_xlabel("learning rate times sharpness")
        for panel in grid[:, 0]:
            panel.set_ylabel("distance")
        figures[f"convergence_order_{name}"] = figure
    return figures
