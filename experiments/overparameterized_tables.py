"""Over-parameterised training in tables: claims, slopes in the width, rates, values by width."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from experiments.overparameterized_data import Setting
from experiments.overparameterized_report import (
    QUANTITIES,
    RATE,
    by_width,
    cases,
    claims,
    largest_stable,
)

if TYPE_CHECKING:
    import xarray

# Below this share of the initial squared residual float32 rounds; rates are measured above it.
_FLOOR = 1e-10
# n = d = 1000, normal labels, descent at h = 0.5; another draw of all that is random. m -> squared
# residual at k = 0, 10, 50; linearised at 10, 50; changed patterns and largest distance at k = 100;
# lambda_min of H(0) and H(100).
REFERENCE = {
    500: (1417.0, 29.3, 6.9e-4, 25.2, 2.7e-4, 0.0284, 2.780, 0.2407, 0.2396),
    1000: (1442.0, 28.9, 5.1e-4, 26.0, 2.7e-4, 0.0201, 1.974, 0.2431, 0.2427),
    2000: (1605.0, 29.9, 4.2e-4, 27.6, 2.7e-4, 0.0146, 1.479, 0.2447, 0.2446),
    4000: (2103.0, 32.6, 4.0e-4, 30.8, 2.9e-4, 0.0114, 1.164, 0.2451, 0.2451),
}


def tables(outcome: "xarray.Dataset", setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """Claims against what was measured, slopes in the width, rates, and values by width.

    Args:
      outcome: from `outcomes`.
      setting: its data.

    Returns:
      Heading -> rows.
    """
    found = {
        "Data": _data(setting),
        "Claims (Du et al. 2019)": [row for case in cases(outcome) for row in claims(*case)],
        "Slopes in the width m (theory: -0.5)": [
            row for case in cases(outcome) for row in _slopes(*case)
        ],
        "Squared residual a step, largest width": [
            row for case in cases(outcome) for row in _rates(*case)
        ],
        "Squared residual by width, largest stable learning rate": [
            row for case in cases(outcome) for row in _widths(*case)
        ],
        "Movement and smallest eigenvalue by width, likewise": [
            row for case in cases(outcome) for row in _movement(*case)
        ],
        "Beside the reference": _reference(outcome, setting),
    }
    return {heading: rows for heading, rows in found.items() if rows}


def _data(setting: Setting) -> list[dict[str, Any]]:
    hidden, both = setting.kernels[False], setting.kernels[True]
    return [
        {
            "n": len(setting.inputs),
            "d": setting.inputs.shape[1],
            "rows left out (parallel or 0)": setting.removed,
            "lambda_0": float(hidden.values[0]),
            "lambda_max": float(hidden.values[-1]),
            "both layers: lambda_0": float(both.values[0]),
            "lambda_max ": float(both.values[-1]),
        }
    ]


def _slopes(training: str, labels: str, lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    widths = lanes.width.values
    if len(widths) < 3:
        return []  # a line through two points fits anything
    start = by_width(lanes, "initial_residual").values ** 0.5
    rows = []
    for quantity, name in QUANTITIES.items():
        values = by_width(lanes, quantity).values
        slope, moves = _slope(widths, values), quantity in ("changed_patterns", "unit_distance_max")
        rows.append(
            {
                "training": training,
                "labels": labels,
                "quantity": name,
                "all widths": slope,
                "the largest two": _slope(widths[-2:], values[-2:]),
                "of it over |u_0 - y|": _slope(widths, values / start) if moves else None,
                "within 0.1": "yes" if abs(slope + 0.5) < 0.1 else "no",
            }
        )
    return rows


def _slope(widths: np.ndarray, values: Float[np.ndarray, "widths seeds"]) -> float:
    """The slope of the mean logarithm over seeds; NaN if a value is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values).mean(axis=1)
    if not np.isfinite(logs).all():
        return float("nan")
    return float(np.polyfit(np.log(widths.astype(float)), logs, 1)[0])


def _rates(training: str, labels: str, lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    wide = lanes.isel(width=-1)
    rows = []
    for value in lanes[RATE].values:
        here = wide.sel({RATE: value})
        rate, bound = float(here["rate"]), here["bound"].values
        rows.append(
            {
                "training": training,
                "labels": labels,
                "h": rate,
                "h lambda_max": float(here["scaled_rate"]),
                "measured factor": _factor(here["ratio"]),
                "linearised": _factor(here["linearized_ratio"]),
                "bound": float(bound[-1] ** (1 / here.step.values[-1])),
                "left at the end": float(here["ratio"].isel(step=-1).mean()),
            }
        )
    return rows


def _factor(ratio: "xarray.DataArray") -> float | None:
    """What a step multiplies the squared residual by, over the run, above float32's floor."""
    factors = []
    for lane in ratio.transpose("seed", "step").values:
        above = np.flatnonzero(lane > _FLOOR)
        if not np.isfinite(lane).all() or above[-1] == 0:
            return None
        factors.append(lane[above[-1]] ** (1 / ratio.step.values[above[-1]]))
    return float(np.mean(factors))


def _nearest(lanes: "xarray.Dataset", share: float) -> int:
    """The recorded step nearest to a share of the run."""
    steps = lanes.step.values
    return int(steps[np.abs(steps - share * steps[-1]).argmin()])


def _widths(training: str, labels: str, lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    early, late = _nearest(lanes, 0.1), _nearest(lanes, 0.5)
    at = lanes.sel({RATE: largest_stable(lanes)}).mean("seed")
    rows = []
    for width in lanes.width.values:
        residual, linear = (
            at[name].sel(width=width) for name in ("squared_residual", "linearized_residual")
        )
        rows.append(
            {
                "training": training,
                "labels": labels,
                "m": int(width),
                "k = 0": float(residual[0]),
                f"k = {early}": float(residual.sel(step=early)),
                f"k = {late}": float(residual.sel(step=late)),
                f"linearised {early}": float(linear.sel(step=early)),
                f"linearised {late}": float(linear.sel(step=late)),
            }
        )
    return rows


def _movement(training: str, labels: str, lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    at = lanes.sel({RATE: largest_stable(lanes)}).mean("seed")
    rows = []
    for width in lanes.width.values:
        here = at.sel(width=width)
        eigenvalues = here["least_eigenvalue"].dropna("step")
        distance = float(here["unit_distance_max"].isel(step=-1))
        rows.append(
            {
                "training": training,
                "labels": labels,
                "m": int(width),
                "changed %": 100 * float(here["changed_patterns"].isel(step=-1)),
                "distance": distance,
                "times sqrt(m)": distance * float(width) ** 0.5,
                "its bound": float(here["distance_bound"]),
                "lambda_min at k = 0": float(eigenvalues[0]),
                "at the end": float(eigenvalues[-1]),
            }
        )
    return rows


def _reference(outcome: "xarray.Dataset", setting: Setting) -> list[dict[str, Any]]:
    """The means over seeds beside the reference's one draw, where the run is of its setting."""
    same = (
        setting.inputs.shape == (1000, 1000)
        and {"normal"} <= set(outcome.labels.values)
        and {"descent"} <= set(outcome.training.values)
        and set(REFERENCE) <= set(outcome.width.values.tolist())
        and {0, 10, 50, 100} <= set(outcome.step.values.tolist())
        and bool(np.isclose(outcome[RATE].values, 0.5, rtol=1e-5).any())
    )
    if not same:
        return []
    lanes = outcome.sel(labels="normal", training="descent").sel({RATE: 0.5}, method="nearest")

    def values(here: "xarray.Dataset") -> Float[np.ndarray, "quantities seeds"]:
        residual, linear = here["squared_residual"], here["linearized_residual"]
        return np.stack(
            [
                *(residual.sel(step=step) for step in (0, 10, 50)),
                *(linear.sel(step=step) for step in (10, 50)),
                here["changed_patterns"].sel(step=100),
                here["unit_distance_max"].sel(step=100),
                here["least_eigenvalue"].sel(step=0),
                here["least_eigenvalue"].sel(step=100),
            ]
        )

    measured = np.stack([values(lanes.sel(width=width)) for width in REFERENCE])
    known = np.array(list(REFERENCE.values()))[:, :, None]
    # What a draw of signs and labels changes, u_0 - y, is divided out: residuals over those of the
    # linearised network from the same start, movement over |u_0 - y|.
    scales = {
        "residual at k = 10": (1, lambda v: v[:, 3]),
        "residual at k = 50": (2, lambda v: v[:, 4]),
        "changed patterns": (5, lambda v: v[:, 0] ** 0.5),
        "largest distance": (6, lambda v: v[:, 0] ** 0.5),
        "lambda_min of H(0)": (7, lambda v: 1.0),
        "lambda_min of H(100)": (8, lambda v: 1.0),
    }
    rows = []
    for name, (index, scale) in scales.items():
        here, there = measured[:, index], known[:, index, 0]
        plain = here.mean(1) / there - 1
        relative = (here / scale(measured)).mean(1) / (there / scale(known[..., 0])) - 1
        rows.append(
            {
                "quantity": name,
                "measured, m = 500 .. 4000": [float(value) for value in here.mean(1)],
                "reference": [float(value) for value in there],
                "seeds differ by %": 100 * float((np.ptp(here, axis=1) / here.mean(1)).max()),
                "departure %": 100 * float(np.abs(plain).max()),
                "with the start divided out %": 100 * float(np.abs(relative).max()),
                "within 10 %": "yes" if np.abs(relative).max() < 0.1 else "no",
            }
        )
    return rows
