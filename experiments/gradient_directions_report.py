"""What the directions of minibatch gradients did, beside the claims and the identity."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.gradient_directions_models import NETWORKS

if TYPE_CHECKING:
    import xarray

KAPPA, UNBIASED = "minibatch_concentration", "minibatch_concentration_unbiased"
FLOOR, PREDICTED = "minibatch_concentration_floor", "minibatch_concentration_predicted"
GS, GNS = "minibatch_gradient_stochasticity", "minibatch_norm_stochasticity"
LANES = ("seed", "learning_rate")


def measured(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """The records at which directions were measured, without the lanes that diverged.

    Args:
      dataset: the sweep's result.

    Returns:
      The dataset with fewer steps, NaN throughout on lanes that did not end well, and for every
      lane `kappa_correlation`, that of gradient stochasticity and kappa_hat along training,
      `norm_correlation`, that of gradient stochasticity and norm stochasticity, and both again
      `_trained`, without the record at step 0.
    """
    kept = dataset[KAPPA].notnull().any([d for d in dataset[KAPPA].dims if d != "step"])
    found = dataset.isel(step=np.flatnonzero(kept.values))
    ok = found["verdict"] == "ok"
    found = found.assign(
        {name: found[name].where(ok) for name in found if "step" in found[name].dims}
    )
    for suffix, records in (("", found), ("_trained", found.isel(step=slice(1, None)))):
        for name, other in (("kappa", KAPPA), ("norm", GNS)):
            found[f"{name}_correlation{suffix}"] = _correlation(records[GS], records[other])
    return found


def _correlation(first: "xarray.DataArray", second: "xarray.DataArray") -> "xarray.DataArray":
    """Pearson's correlation over the records, for every lane."""
    both = first.notnull() & second.notnull()
    one, two = (x.where(both) - x.where(both).mean("step") for x in (first, second))
    product = (one * two).sum("step", min_count=3)
    return product / ((one**2).sum("step") * (two**2).sum("step")) ** 0.5


def tables(found: "xarray.Dataset") -> dict[str, list[dict[str, Any]]]:
    """Claims against what was measured, correlations, and concentration along training.

    Args:
      found: from `measured`.

    Returns:
      Heading -> rows.
    """
    return {
        "Claims (Lee, Cho & Kang 2018)": _claims(found),
        "Correlation of GS along training (medians over lanes)": _correlations(found),
        "Concentration / d (medians over lanes)": _course(found),
        "Unbiased concentration / d beside sqrt(b (1 + b))": _identity(found),
    }


def _share(condition: "xarray.DataArray", of: "xarray.DataArray") -> tuple[str, bool]:
    good, count = int((condition & of).sum()), int(of.sum())
    return f"{good} of {count} lanes", good == count > 0


def _claims(found: "xarray.Dataset") -> list[dict[str, Any]]:
    first, last = (found[UNBIASED].isel(step=index) for index in (0, -1))
    peak = found[UNBIASED].max("step")
    there = last.notnull()
    rows = []

    def add(claim: str, condition: Any, of: Any) -> None:
        text, holds = _share(condition, of)
        rows.append({"claim": claim, "measured": text, "holds": "yes" if holds else "no"})

    add("concentration is lower at the end than at the start", last < first, there)
    add("concentration is lower at the end than at its highest", last < peak, there)
    for text, suffix in (("all records", ""), ("without step 0", "_trained")):
        kappa, norm = found[f"kappa_correlation{suffix}"], found[f"norm_correlation{suffix}"]
        add(
            f"corr(GS, kappa_hat) > corr(GS, GNS), {text}",
            kappa > norm,
            kappa.notnull() & norm.notnull(),
        )
    return rows


def _correlations(found: "xarray.Dataset") -> list[dict[str, Any]]:
    rows = []
    for name in found["network"].values:
        lanes = found.sel(network=name)
        higher, _ = _share(
            lanes["kappa_correlation"] > lanes["norm_correlation"],
            lanes["kappa_correlation"].notnull(),
        )
        rows.append(
            {
                "network": NETWORKS[str(name)],
                "d": int(lanes["dimension"]),
                "GS, kappa_hat": median(lanes["kappa_correlation"]),
                "GS, GNS": median(lanes["norm_correlation"]),
                "GS, kappa_hat without step 0": median(lanes["kappa_correlation_trained"]),
                "GS, GNS without step 0": median(lanes["norm_correlation_trained"]),
                "kappa_hat's is higher": higher,
            }
        )
    return rows


def _course(found: "xarray.Dataset") -> list[dict[str, Any]]:
    rows = []
    middle = int(np.abs(found["epoch"].values - found["epoch"].values[-1] / 2).argmin())
    for name in found["network"].values:
        for rate in found["learning_rate"].values:
            lanes = found.sel(network=name, learning_rate=rate)
            rows.append(
                {
                    "network": NETWORKS[str(name)],
                    "learning rate": float(rate),
                    "floor": median(lanes[FLOOR]),
                    "start": median(lanes[KAPPA].isel(step=0)),
                    f"epoch {found['epoch'].values[1]:g}": median(lanes[KAPPA].isel(step=1)),
                    f"epoch {found['epoch'].values[middle]:g}": median(
                        lanes[KAPPA].isel(step=middle)
                    ),
                    "end": median(lanes[KAPPA].isel(step=-1)),
                    "end, unbiased": median(lanes[UNBIASED].isel(step=-1)),
                    "test accuracy": median(lanes["evaluation_accuracy"].isel(step=-1)),
                    "diverged": int((lanes["verdict"] != "ok").sum()),
                }
            )
    return rows


def _identity(found: "xarray.Dataset") -> list[dict[str, Any]]:
    """The ratio of the two, apart where the estimate is well above and where near the floor."""
    rows = []
    for name in found["network"].values:
        lanes = found.sel(network=name)
        ratio, floors = lanes[UNBIASED] / lanes[PREDICTED], lanes[UNBIASED] / lanes[FLOOR]
        for label, part in (("above 4", floors > 4), ("1 to 4", (floors > 1) & (floors <= 4))):
            values = ratio.where(part).values
            values = values[np.isfinite(values)]
            low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)) if values.size else [None] * 3
            rows.append(
                {
                    "network": NETWORKS[str(name)],
                    "kappa / d in floors": label,
                    "records": len(values),
                    "measured / predicted": None if middle is None else float(middle),
                    "10% .. 90%": "-" if low is None else f"{low:.3g} .. {high:.3g}",
                }
            )
    return rows


def median(values: "xarray.DataArray") -> float:
    """The median of what is finite; NaN for nothing.

    Args:
      values: of any dimensions.

    Returns:
      The median.
    """
    finite = values.values[np.isfinite(values.values)]
    return float(np.median(finite)) if finite.size else float("nan")
