"""What over-parameterised training did, beside the theory's bounds, and the claims."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from driftlab.curvature.lazy_training import descent_bound, flow_bound, movement_bound
from experiments.overparameterized_data import Setting
from experiments.overparameterized_models import TRAININGS

if TYPE_CHECKING:
    import xarray

RATE = "learning_rate"
# What falls like 1 / sqrt(m).
QUANTITIES = {
    "changed_patterns": "changed activation patterns",
    "unit_distance_max": "largest distance of a unit",
    "relative_error": "distance from the linearised network",
    "kernel_error": "distance of H(0) from its limit",
}


def outcomes(
    dataset: "xarray.Dataset", setting: Setting, units: dict[str, float]
) -> "xarray.Dataset":
    """What every lane did, relative to its start, and the bounds.

    Args:
      dataset: the sweep's result.
      setting: its data.
      units: training -> what the axis' learning rates are multiplied by.

    Returns:
      The dataset with `rate` (h), `scaled_rate` (h lambda_max of the limit kernel), `stable` (below
      2, or a flow), `ratio` (squared residual over `initial_residual`), `linearized_ratio`, `bound`
      (what `ratio` may be), `relative_error` (of the linearised residual), `distance_bound`,
      `relative_eigenvalue` (of H(k), over the limit's) and `premise` (whether that of H(k) stays
      above lambda_0 / 2 at all its records).
    """
    import xarray

    names = [str(name) for name in dataset.training.values]
    axis, steps = dataset[RATE].values, dataset.step.values
    kernels = [setting.kernels[TRAININGS[name][0]] for name in names]
    flows = np.array([TRAININGS[name][1] for name in names])
    rates = np.array([[value * units[name] for value in axis] for name in names])
    scaled = rates * np.array([float(kernel.values[-1]) for kernel in kernels])[:, None]
    bounds = np.stack(
        [_bound(is_flow, row, steps, setting) for is_flow, row in zip(flows, rates, strict=True)]
    )
    first = dataset["squared_residual"].isel(step=0)
    n = len(setting.inputs)
    # The bound is proportional to |u_0 - y|.
    movement = [
        [
            float(movement_bound(1.0, n, int(m), setting.least_eigenvalue, flow=bool(is_flow)))
            for m in dataset.width.values
        ]
        for is_flow in flows
    ]
    constants = xarray.DataArray(movement, dims=("training", "width"))
    limits = xarray.DataArray([float(kernel.values[0]) for kernel in kernels], dims="training")
    by_rate = ("training", RATE)
    return dataset.assign(
        rate=(by_rate, rates),
        scaled_rate=(by_rate, scaled),
        stable=(by_rate, (scaled < 2) | flows[:, None]),
        ratio=dataset["squared_residual"] / first,
        initial_residual=first + 0 * dataset["squared_residual"],
        linearized_ratio=dataset["linearized_residual"] / first,
        bound=((*by_rate, "step"), bounds),
        relative_error=dataset["linearized_error"] / first**0.5,
        distance_bound=constants * first**0.5,
        relative_eigenvalue=dataset["least_eigenvalue"] / limits,
        premise=(~(dataset["least_eigenvalue"] <= setting.least_eigenvalue / 2)).all("step"),
    )


def _bound(
    is_flow: bool, rates: Float[np.ndarray, " rates"], steps: np.ndarray, setting: Setting
) -> Float[np.ndarray, "rates records"]:
    """The theorem's bound of each rate; infinite where the rate is too large for it to be one."""
    least, rows = setting.least_eigenvalue, []
    for rate in rates:
        bound = (
            flow_bound(rate * steps.astype(float), least)
            if is_flow
            else descent_bound(steps, rate, least)
        )
        rows.append(np.asarray(bound, np.float64))
    return np.stack(rows)


def cases(outcome: "xarray.Dataset") -> Iterator[tuple[str, str, "xarray.Dataset"]]:
    """The lanes of every kind of label and training.

    Args:
      outcome: from `outcomes`.

    Yields:
      The training, the labels, and their part of the outcome.
    """
    for labels in outcome.labels.values:
        for training in outcome.training.values:
            yield str(training), str(labels), outcome.sel(training=training, labels=labels)


def largest_stable(lanes: "xarray.Dataset") -> float:
    """The largest of the axis' learning rates that is stable; the smallest of all if none is.

    Args:
      lanes: of one training.
    """
    stable = lanes[RATE].values[lanes["stable"].values]
    return float(stable.max() if stable.size else lanes[RATE].values.min())


def by_width(lanes: "xarray.Dataset", quantity: str) -> "xarray.DataArray":
    """A quantity of `QUANTITIES` at the largest stable rate, at each width and seed.

    Args:
      lanes: of one training and kind of label.
      quantity: which; the kernel's at the start, the linearised network's at its largest, others
        at the end.

    Returns:
      Over width and seed.
    """
    values = lanes[quantity].sel({RATE: largest_stable(lanes)})
    if quantity == "kernel_error":
        values = values.isel(step=0)
    elif quantity == "relative_error":
        values = values.max("step")
    else:
        values = values.isel(step=-1)
    return values.transpose("width", "seed")


def claims(training: str, labels: str, lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    """The theory's claims against what was measured, of one training and kind of label.

    Args:
      training: its name.
      labels: their kind.
      lanes: its part of the outcome.

    Returns:
      A row a claim.
    """
    stable = lanes.sel({RATE: lanes[RATE].values[lanes["stable"].values]})
    rows: list[tuple[str, str, bool]] = []
    if stable.sizes[RATE]:
        # At step 0 both are 1.
        excess = (stable["ratio"] / stable["bound"]).isel(step=slice(1, None))
        kept = (excess <= 1).all("step")
        worst = float(excess.max())
        text = f"{_share(kept)}, at most {worst:.3g} of it"
        name = "exp(-lambda_0 t)" if training == "flow" else "(1 - h lambda_0 / 2)^k"
        rows.append((f"residual never above {name}", text + _from_width(kept), bool(kept.all())))
        # What the proofs need of the width, and the only thing.
        premise = stable["premise"]
        text = f"{int((kept & premise).sum())} of {int(premise.sum())} lanes"
        claim = "the same where lambda_min(H(k)) > lambda_0 / 2"
        rows.append((claim, text, bool((kept | ~premise).all())))
        final = stable["ratio"].isel(step=-1).sel({RATE: largest_stable(lanes)})
        text = f"{float(final.min()):.2g} to {float(final.max()):.2g} of the start left"
        rows.append(("the labels are fitted: below 1 %", text, bool((final < 0.01).all())))
        share = (stable["unit_distance_max"] / stable["distance_bound"]).max("step")
        text = f"at most {float(share.max()):.2g} of it"
        rows.append(("units move less than the bound", text, bool((share <= 1).all())))
        known = stable["relative_eigenvalue"].dropna("step", how="all")
        start, least = known.isel(step=0), known.min("step")
        for text, values, limit in (
            ("lambda_min(H(0)) >= 3/4 of its limit", start, 0.75),
            ("lambda_min(H(k)) > 1/2 of it", least, 0.5),
        ):
            enough = values > limit
            measured = f"at least {float(values.min()):.3g}{_from_width(enough)}"
            rows.append((text, measured, bool(enough.all())))
        if training != "flow":
            falls = ~(stable["ratio"].diff("step") > 1e-6).any("step")
            text = "h lambda_max < 2: the residual never rises"
            rows.append((text, _share(falls) + _from_width(falls), bool(falls.all())))
    unstable = lanes.sel({RATE: lanes[RATE].values[~lanes["stable"].values]})
    if unstable.sizes[RATE]:
        # Infinite where it left float32's range.
        grows = ~(unstable["linearized_ratio"].isel(step=-1) <= 1)
        rises = ~(unstable["ratio"].max("step") <= 1)
        fitted = unstable["ratio"].isel(step=-1) < 0.01
        text = f"{_share(grows)}; the network's rises in {int(rises.sum())}"
        text += f", and is below 1 % at the end in {int(fitted.sum())}"
        rows.append(("h lambda_max > 2: the linearised one grows", text, bool(grows.all())))
    return [
        {
            "training": training,
            "labels": labels,
            "claim": claim,
            "measured": measured,
            "holds": "yes" if holds else "no",
        }
        for claim, measured, holds in rows
    ]


def _share(condition: "xarray.DataArray") -> str:
    return f"{int(condition.sum())} of {condition.size} lanes"


def _from_width(condition: "xarray.DataArray") -> str:
    """From which width on a condition holds in all lanes, where it does not at every width."""
    if condition.all():
        return ""
    holds = condition.all([name for name in condition.dims if name != "width"])
    fails = np.flatnonzero(~holds.values)[-1]
    widths = holds.width.values[fails + 1 :]
    return f"; in all from m = {widths[0]}" if widths.size else "; at no width in all"
