"""Tables and figures of experiments/stochastic_flows.py."""

from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.flows.order import fitted_order, observed_orders
from driftlab.plot.style import LINE_COLORS, new_figure, style

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

_QUANTITIES = {"mean": "E x", "second": "E x x^T", "loss": "E f"}


def tables(dataset: "xarray.Dataset") -> dict[str, Rows]:
    """The claims, the slopes, and the ensembles.

    Args:
      dataset: of `stochastic_flows.run`.

    Returns:
      Heading -> rows.
    """
    orders = _orders(dataset)
    sgd, adam = (_ensembles(dataset, kind) for kind in ("sgd", "adam"))
    return {
        "Claims": _claims(orders, sgd, adam),
        "Weak order": orders,
        "SGD": sgd,
        "Adam": adam,
    }


def _orders(dataset: "xarray.Dataset") -> Rows:
    rates = dataset.scaled_learning_rate.values
    rows = []
    for order in dataset.order.values.tolist():
        for quantity in dataset.quantity.values.tolist():
            errors = dataset.error.sel(order=order, quantity=quantity).values
            rows.append(
                {
                    "equation": f"order {order}",
                    "error of": _QUANTITIES[quantity],
                    "largest h": float(errors[0]),
                    "smallest h": float(errors[-1]),
                    "fitted": fitted_order(rates, errors),
                    "s.e. of fit": _standard_error(rates, errors),
                    "last pair": float(observed_orders(rates, errors)[-1]),
                    "theory": order,
                }
            )
    return rows


def _standard_error(rates: np.ndarray, errors: np.ndarray) -> float | None:
    """Of the slope of a straight line through the logarithms; None for two points."""
    if len(rates) < 3:
        return None
    x, y = np.log(rates) - np.log(rates).mean(), np.log(errors) - np.log(errors).mean()
    rest = y - (x @ y) / (x @ x) * x
    return float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def _ensembles(dataset: "xarray.Dataset", kind: str) -> Rows:
    """Each run beside the optimiser that it models: means, in standard errors, and spreads."""
    rows = []
    for name in dataset[f"{kind}_run"].values.tolist():
        prefix, _, rate = name.rpartition(" ")
        model = f"sgd {rate}" if kind == "sgd" else "adam"
        found = dataset[kind].sel({f"{kind}_run": name}).values
        truth = dataset[kind].sel({f"{kind}_run": model}).values
        count = found.shape[1]
        error = np.sqrt((found.var(1, ddof=1) + truth.var(1, ddof=1)) / count)
        apart = (found.mean(1) - truth.mean(1)) / np.where(error > 0, error, np.nan)
        own = name == model
        rows.append(
            {
                "run": prefix if kind == "sgd" else name,
                **({"h lambda": float(rate) * float(dataset.sharpness)} if kind == "sgd" else {}),
                "E loss": float(found[0].mean()),
                "minus the optimiser's": None if own else float(found[0].mean() - truth[0].mean()),
                "s.e.": None if own else float(error[0]),
                "apart (s.e.)": None if own else float(apart[0]),
                "sd loss": float(found[0].std(ddof=1)),
                "E norm^2": float(found[1].mean()),
                "norm^2 apart (s.e.)": None if own else float(apart[1]),
                "norm^2 apart (relative)": None
                if own
                else float(found[1].mean() / truth[1].mean() - 1),
            }
        )
    return rows


def _claims(orders: Rows, sgd: Rows, adam: Rows) -> Rows:
    rows = []
    for order in (1, 2):
        found = {row["error of"]: row["last pair"] for row in orders if row["theory"] == order}
        # The error of a single number may pass through 0, where its slope says nothing: that of
        # E f is shown, and not judged.
        judged = [found[_QUANTITIES[name]] for name in ("mean", "second")]
        rows.append(
            {
                "claim": f"Li, Tai & E: the order-{order} equation has weak order {order}",
                "measured": ", ".join(f"{name}: {value:.3f}" for name, value in found.items()),
                "holds": "yes" if all(abs(value - order) < 0.1 for value in judged) else "NO",
            }
        )
    smallest = min(row["h lambda"] for row in sgd)
    for order in (1, 2):
        for row in sgd:
            if row["run"] == f"order {order}" and row["h lambda"] == smallest:
                off = abs(row["apart (s.e.)"])
                rows.append(
                    {
                        "claim": f"network, h lambda = {smallest:.2g}: E loss of SGD and of order "
                        f"{order} within 3 standard errors",
                        "measured": f"{off:.2f}",
                        "holds": "yes" if off < 3 else "NO",
                    }
                )
    by_name = {row["run"]: row for row in adam}
    base = by_name["adam"]["E loss"]
    for name, what in (("sde", "the published equation"), ("sde with mean", "with the mean")):
        off = abs(by_name[name]["apart (s.e.)"])
        rows.append(
            {
                "claim": f"Adam's E loss and that of {what} within 3 standard errors",
                "measured": f"{off:.2f} ({by_name[name]['E loss']:.4g} against {base:.4g})",
                "holds": "yes" if off < 3 else "NO",
            }
        )
    gaps = {name: abs(by_name[name]["E loss"] - base) for name in ("square root", "linear")}
    rows.append(
        {
            "claim": "Malladi et al.: the square-root rule keeps E loss better than the linear",
            "measured": f"off by {gaps['square root']:.3g} against {gaps['linear']:.3g}",
            "holds": "yes" if gaps["square root"] < gaps["linear"] else "NO",
        }
    )
    return rows


def draw(dataset: "xarray.Dataset") -> dict[str, "Figure"]:
    """Weak errors against the learning rate, and the distributions of Adam's final loss.

    Args:
      dataset: of `stochastic_flows.run`.

    Returns:
      File name without ending -> figure.
    """
    with style():
        weak = new_figure(6.4, 4.2)
        axes = weak.subplots()
        rates = dataset.scaled_learning_rate.values
        for order, color in zip(dataset.order.values.tolist(), LINE_COLORS, strict=False):
            for (quantity, symbol), line in zip(
                _QUANTITIES.items(), ("-", "--", ":"), strict=True
            ):  # fmt: skip
                errors = dataset.error.sel(order=order, quantity=quantity).values
                label = f"order {order}, {symbol}"
                axes.plot(rates, errors, line, color=color, marker=".", label=label)
        axes.set(
            xscale="log", yscale="log", xlabel="learning rate, units of 1 / sharpness",
            ylabel="error of the expectation",
        )  # fmt: skip
        axes.legend()
        spread = new_figure(7.6, 4.2)
        axes = spread.subplots()
        for name, color in zip(dataset.adam_run.values.tolist(), LINE_COLORS, strict=False):
            values = np.sort(dataset.adam.sel(adam_run=name, final="loss").values)
            axes.plot(values, np.arange(1, len(values) + 1) / len(values), color=color, label=name)
        axes.set(xlabel="loss at the end (cross-entropy)", ylabel="share of seeds below")
        # The curves may be anywhere.
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return {"stochastic_flows_weak_order": weak, "stochastic_flows_adam": spread}
