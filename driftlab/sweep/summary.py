"""What a learning-rate sweep says: best rate, largest stable rate, divergence by rate."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

SEED = "seed"


def final(dataset: "xarray.Dataset", variable: str) -> "xarray.DataArray":
    """A measure at the last step; NaN on lanes that did not end well, so that none wins a minimum.

    Args:
      dataset: a sweep's result.
      variable: the measure.

    Returns:
      The values over the axes.
    """
    return dataset[variable].isel(step=-1).where(dataset["verdict"] == "ok")


def divergence_rate(dataset: "xarray.Dataset") -> "xarray.DataArray":
    """The share of seeds that diverged or turned non-finite, over the other axes.

    Args:
      dataset: a sweep's result.

    Returns:
      Shares between 0 and 1.
    """
    failed = dataset["verdict"].isin(["diverged", "nonfinite"]).astype(float)
    return failed.mean(SEED) if SEED in failed.dims else failed


def learning_rate_summary(
    dataset: "xarray.Dataset",
    variable: str = "loss",
    *,
    axis: str = "learning_rate",
    larger_is_better: bool = False,
) -> list[dict[str, Any]]:
    """Best and largest stable value of an axis, for each point of the other axes but `seed`.

    A rate is *stable* if every seed is "ok" and the median final `loss` does not exceed the
    median initial one; the largest stable rate is the largest for which all smaller ones are
    stable too. The *best* rate has the best median of the final `variable` among those at which
    no seed failed.

    Args:
      dataset: a sweep's result; it must hold `loss` and `variable`.
      variable: what is compared.
      axis: the axis that is searched.
      larger_is_better: whether the largest value is best (accuracies) or the smallest.

    Returns:
      A row a point: the point's coordinates, `best`, `best_value`, `best_quartiles`,
      `largest_stable` (None where there is none), `failed_share`.
    """
    over_seeds = [SEED] if SEED in dataset.dims else []
    values = final(dataset, variable)
    failed = divergence_rate(dataset)
    first, last = dataset["loss"].isel(step=0), final(dataset, "loss")
    stable = (failed == 0) & (last.median(over_seeds) <= first.median(over_seeds))
    others = [name for name in failed.dims if name != axis]
    rows = []
    for index in np.ndindex(*(failed.sizes[name] for name in others)):
        where = dict(zip(others, index, strict=True))
        order = np.argsort(dataset[axis].values)
        rates = dataset[axis].values[order]
        here = values.isel(where).isel({axis: order}).transpose(axis, ...)
        usable = failed.isel(where).values[order] == 0
        runs = here.values.reshape(len(rates), -1)
        row: dict[str, Any] = {
            str(name): dataset[name].values[i].item() for name, i in where.items()
        }
        row |= {"best": None, "best_value": None, "best_quartiles": None, "largest_stable": None}
        if usable.any():
            medians = np.where(usable, np.median(runs, axis=1), np.nan)
            best = int((np.nanargmax if larger_is_better else np.nanargmin)(medians))
            row["best"], row["best_value"] = float(rates[best]), float(medians[best])
            row["best_quartiles"] = [float(q) for q in np.quantile(runs[best], [0.25, 0.75])]
        unstable = np.flatnonzero(~stable.isel(where).values[order])
        count = int(unstable[0]) if unstable.size else len(rates)
        if count:
            row["largest_stable"] = float(rates[count - 1])
        row["failed_share"] = float(failed.isel(where).mean())
        rows.append(row)
    return rows
