"""The figures of the edge of stability: sharpness against its threshold, and gradient flow's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from driftlab import plot
from driftlab.plot.threshold_panels import Comparison, threshold_panels
from experiments.edge_methods import SHARPNESS, Method

if TYPE_CHECKING:
    import xarray


def flow_curves(
    config: Any, method: Method, dataset: "xarray.Dataset", flow: "xarray.Dataset | None"
) -> list[Comparison] | None:
    """Gradient flow's sharpness at the times of each learning rate's iterations.

    Args:
      config: the config.
      method: the optimiser.
      dataset: its sweep's result.
      flow: gradient flow's; None if it was not followed.

    Returns:
      For each learning rate the median over seeds, up to the last iteration or flow time; None
      where gradient flow is not the optimiser's limit.
    """
    if flow is None or method.flow_time is None:
        return None
    time = flow["step"].values * (config.flow_time / config.flow_records)
    values = flow[SHARPNESS].median("seed").values
    found = []
    for rate in dataset["learning_rate"].values:
        iterations = time / (float(rate) * method.flow_time)
        kept = iterations <= config.steps
        found.append(Comparison(iterations[kept], values[kept]))
    return found


def draw(
    config: Any,
    methods: Mapping[str, Method],
    results: Mapping[str, "xarray.Dataset"],
    flow: "xarray.Dataset | None",
) -> dict[str, Any]:
    """The figures: for each optimiser its sharpness, a panel a learning rate, and its losses.

    Args:
      config: the config.
      methods: method name -> method.
      results: method name -> its sweep's result.
      flow: gradient flow's; None if it was not followed.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    for name, dataset in results.items():
        method = methods[name]
        rates, quantity = dataset["learning_rate"].values, method.variable.replace("_", " ")
        figures[f"{name}_sharpness"] = threshold_panels(
            dataset,
            method.variable,
            [method.constant / float(rate) for rate in rates],
            threshold_label=f"{method.formula} / learning rate",
            comparisons=flow_curves(config, method, dataset, flow),
            comparison_label="gradient flow at the same time",
            title=f"{method.title}: {quantity} and its threshold",
        )
        figures[f"{name}_loss"] = plot.curves(dataset, "loss", title=f"{method.title}: loss")
    return figures
