"""What the catapult's lanes did, beside the exact recursion and the claims; the figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from driftlab import plot

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

AXIS = "scaled_learning_rate"
OUTCOMES = ("lazy", "catapult", "not learned", "dead", "diverged")

# Scaled rate -> (peak of loss / initial, final curvature / initial) at m = 512 and
# |f_0| / lambda_0 = 0.532, from the exact recursion in float64; None where it diverges.
REFERENCE = {
    1.9: (0.8, 0.989),
    2.5: (50.0, 0.510),
    3.0: (146.0, 0.081),
    3.5: (220.0, 0.087),
    3.9: (363.0, 0.126),
    4.3: None,
}
_CURVES = (1.0, 1.9, 2.5, 3.0, 3.5, 3.9, 4.3, 8.0, 16.0, 32.0, 50.0)


def recursion(
    scaled_rate: float, width: int, initial_output: float, steps: int
) -> tuple[Float[np.ndarray, " records"], Float[np.ndarray, " records"]]:
    """The linear network's training, exactly, in two numbers.

    With `x = h lambda` and `y = h^2 f^2 / m`: `y' = y (1 - x + y)^2`, `x' = x + y (x - 4)`.

    Args:
      scaled_rate: `h lambda_0`.
      width: m.
      initial_output: `|f_0| / lambda_0`.
      steps: iterations N.

    Returns:
      `loss_k / loss_0` and `lambda_k / lambda_0` for k = 0 .. N; infinite or NaN once it diverged.

    Source: Lewkowycz et al. (2020), section 2, equations of f and of the kernel.
    """
    x, y = scaled_rate, scaled_rate**2 * initial_output**2 / width
    curve = [(y, x)]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            x, y = np.float64(x + y * (x - 4)), np.float64(y * (1 - x + y) ** 2)
            curve.append((y, x))
        losses, curvatures = np.array(curve).T
        return losses / losses[0], curvatures / curvatures[0]


def outcomes(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """What every lane did.

    Args:
      dataset: the sweep's result.

    Returns:
      The dataset with `relative_loss` (loss / initial), `peak_loss` (its largest value so far,
      from step 1 on), `scaled_curvature` (`h lambda`, lambda the kernel's) and `outcome`, one of
      `OUTCOMES`: "lazy" if the loss never exceeded its start, "catapult" if it did and ended below
      half of it and of what f = 0 has, "not learned" if it did not, "dead" if no unit is active.
    """
    first = dataset["loss"].isel(step=0)
    relative = dataset["loss"] / first
    peaks = relative.copy(data=np.maximum.accumulate(relative.values, axis=-1))
    peaks[..., 0] = np.nan
    peaks[..., 1:] = np.maximum.accumulate(relative.values[..., 1:], axis=-1)
    kernel = dataset["kernel_eigenvalue"]
    scaled = dataset[AXIS] * kernel / kernel.isel(step=0)
    ok = dataset["verdict"] == "ok"
    last, peak = dataset["loss"].isel(step=-1), peaks.isel(step=-1)
    active = dataset["active_units"].isel(step=-1)
    zero = dataset["zero_loss"].isel(step=0)
    # The linear network's targets are 0: f = 0 is its solution there, not a failure.
    goal = np.minimum(first, zero.where(zero > 0, np.inf)) / 2
    codes = np.select([~ok, active == 0, peak <= 1, last < goal], [4, 3, 0, 1], default=2)
    long_names = {
        "relative_loss": "loss / initial loss",
        "peak_loss": "peak of loss / initial loss",
        "scaled_curvature": r"final curvature $h\,\lambda$",
        "active_units": "share of active units",
    }
    found = dataset.assign(
        relative_loss=relative,
        peak_loss=peaks,
        scaled_curvature=scaled.transpose(*dataset["loss"].dims),
        outcome=ok.copy(data=np.array(OUTCOMES)[codes]),
    )
    for name, text in long_names.items():
        found[name].attrs = {"long_name": text}
    found[AXIS].attrs = {"long_name": r"learning rate $\times$ initial curvature, $h\,\lambda_0$"}
    return found


def tables(
    outcome: "xarray.Dataset", width: int, initial_output: float, steps: int
) -> dict[str, list[dict[str, Any]]]:
    """Claims against what was measured, and the linear network beside the recursion.

    Args:
      outcome: from `outcomes`.
      width: m.
      initial_output: `|f_0| / lambda_0`.
      steps: iterations.

    Returns:
      Heading -> rows.
    """
    compared, worst = [], 0.0
    linear = outcome.sel(network="linear").isel(seed=0)
    for rate in outcome[AXIS].values:
        lane = linear.sel({AXIS: rate})
        diverged = str(lane.verdict.values) != "ok"
        losses, curvatures = recursion(float(rate), width, initial_output, steps)
        exact = (None, None) if not losses[-1] < 1e6 else (losses[1:].max(), curvatures[-1])
        measured = (
            (None, None)
            if diverged
            else (
                float(lane.peak_loss[-1]),
                float(lane.kernel_eigenvalue[-1] / lane.kernel_eigenvalue[0]),
            )
        )
        # Near 4 the trajectory is chaotic before it settles: rounding decides where.
        if not diverged and exact[0] is not None and rate <= 3:
            worst = max(worst, *(abs(a / b - 1) for a, b in zip(measured, exact, strict=True)))
        known = _reference(float(rate))
        if known is not None:
            compared.append(
                {
                    "h lambda_0": float(rate),
                    "peak loss": measured[0],
                    "recursion": exact[0],
                    "reference": known[0],
                    "final curvature ratio": measured[1],
                    "recursion ": exact[1],
                    "reference ": known[1],
                    "outcome": str(lane.outcome.values),
                }
            )
    claims = [*_claims(outcome, "linear", 4.0), *_claims(outcome, "relu", 12.0)]
    claims.insert(
        3,
        {
            "network": "linear",
            "claim": "peak and final curvature as the recursion's, h lambda_0 <= 3",
            "measured": f"at most {worst:.1e} away, relatively",
            "holds": "yes" if worst < 1e-3 else "no",
        },
    )
    return {
        "Claims (Lewkowycz et al. 2020)": claims,
        "The linear network (a dash: diverged)": compared,
        "Outcomes": _intervals(outcome),
    }


def _reference(rate: float) -> tuple[float | None, float | None] | None:
    for known, values in REFERENCE.items():
        if abs(rate - known) < 1e-6:
            return values or (None, None)
    return None


def _share(condition: Any, of: Any) -> str:
    return f"{int((condition & of).sum())} of {int(of.sum())} lanes"


def _claims(outcome: "xarray.Dataset", network: str, limit: float) -> list[dict[str, Any]]:
    """The three phases of one network, with the published upper end of the catapult."""
    lanes = outcome.sel(network=network)
    rate = lanes[AXIS] + 0 * lanes.loss.isel(step=0)
    low, high = 2 * (1 + 1e-5), limit * (1 - 1e-5)  # the limits themselves are on neither side
    below, inside, above = rate < 2 * (1 - 1e-5), (rate > low) & (rate < high), rate > limit
    ends = lanes.outcome
    learned = lanes.scaled_curvature.isel(step=-1).where(ends == "catapult")
    rows = [
        ("h lambda_0 < 2: the loss never exceeds its start", ends == "lazy", below),
        (f"2 < h lambda_0 < {limit:g}: it rises, then falls", ends == "catapult", inside),
        ("after a catapult the curvature is below 2 / h", learned < 2, ends == "catapult"),
        (f"h lambda_0 > {limit:g}: it diverges", ends == "diverged", above),
    ]
    largest = f", at most {float(learned.max()):.2f} / h" if learned.notnull().any() else ""
    return [
        {
            "network": network,
            "claim": claim,
            "measured": _share(condition, of) + (largest if "curvature" in claim else ""),
            "holds": "yes" if bool((condition | ~of).all()) else "no",
        }
        for claim, condition, of in rows
    ]


def _intervals(outcome: "xarray.Dataset") -> list[dict[str, Any]]:
    """For each network and outcome, the lowest and the highest rate it was met at."""
    rows = []
    for network in outcome.network.values:
        ends = outcome.outcome.sel(network=network)
        for name in OUTCOMES:
            rates = ends[AXIS].values[(ends == name).any("seed").values]
            if rates.size:
                rows.append(
                    {
                        "network": str(network),
                        "outcome": name,
                        "lanes": int((ends == name).sum()),
                        "from h lambda_0": float(rates.min()),
                        "to": float(rates.max()),
                    }
                )
    return rows


def draw(outcome: "xarray.Dataset") -> dict[str, "Figure"]:
    """The figures.

    Args:
      outcome: from `outcomes`.

    Returns:
      File name without ending -> figure.
    """
    figures = {
        "catapult_final_curvature": plot.final_value(outcome, "scaled_curvature", AXIS),
        "catapult_peak_loss": plot.final_value(outcome, "peak_loss", AXIS, best="none"),
        "catapult_active_units": plot.final_value(outcome, "active_units", AXIS),
        "catapult_loss_curves": plot.curves(_few(outcome), "relative_loss", AXIS),
    }
    panel = figures["catapult_final_curvature"].axes[0]
    rates = outcome[AXIS].values
    line = rates[rates <= 4]
    panel.plot(line, line, color="#666666", linestyle=":", linewidth=1.2)
    panel.annotate("unchanged", (line[0], line[0]), (10, -14), textcoords="offset points")
    panel.axhline(2, color="#666666", linestyle="--", linewidth=1)
    panel.annotate("2", (1, 2), (-2, 3), ("axes fraction", "data"), "offset points", ha="right")
    for name in ("catapult_final_curvature", "catapult_peak_loss", "catapult_active_units"):
        _mark(figures[name].axes[0], (2.0, 4.0))
    peak = figures["catapult_peak_loss"].axes[0]
    peak.axhline(1, color="#666666", linestyle="--", linewidth=1)
    peak.set_ylim(bottom=0.1)  # one step of h lambda_0 = 1 solves the linear network
    return figures


def _mark(panel: Any, rates: Sequence[float]) -> None:
    for rate in rates:
        panel.axvline(rate, color="#666666", linestyle="--", linewidth=1)
    # Octaves, as plain numbers: the limits are among them.
    panel.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _few(outcome: "xarray.Dataset") -> "xarray.Dataset":
    """One seed of a dozen rates, for the steps in which everything happens."""
    rates = outcome[AXIS].values
    nearest = sorted({int(abs(np.log(rates / rate)).argmin()) for rate in _CURVES})
    steps = outcome.step.values <= 60
    few = outcome.isel({AXIS: nearest, "seed": slice(0, 1), "step": steps})
    curves = few["relative_loss"]
    # A solved lane reaches 0, which a log scale cannot show.
    few["relative_loss"] = curves.where(~(curves < 1e-6), 1e-6).assign_attrs(curves.attrs)
    return few
