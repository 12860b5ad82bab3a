"""The claims about the principal flow beside what was measured; the figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab import plot
from driftlab.plot.style import LINE_COLORS, new_figure
from experiments.principal_flow_models import TITLES

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Curves = Mapping[float, Mapping[str, np.ndarray]]
Displaced = Sequence[Mapping[str, float]]

COLORS = dict(zip(TITLES, LINE_COLORS, strict=False))
RATES = ("gradient_flow", "order_2", "principal")


def tables(dataset: "xarray.Dataset", curves: Curves, displaced: Displaced) -> dict[str, list]:
    """The tables: claims, steps that raise the loss, errors of one step.

    Args:
      dataset: the sweep's result.
      curves: from `principal_flow.quadratic_curves`.
      displaced: from `principal_flow.displaced_errors`.

    Returns:
      Heading -> rows.
    """
    return {
        "Claims (Rosca et al. 2023)": _claims(dataset, curves, displaced),
        "Where the loss rises, and who says so": _rises(dataset),
        "Error of one step along a run, median, as a share of the step": _along(dataset),
        "Error of one step, displaced along the sharpest direction": [
            {"h lambda_1": row["scaled"], "share of |g|^2 there": row["share"]}
            | {title: row[name] for name, title in TITLES.items()}
            for row in displaced
        ],
    }


def _signs(dataset: "xarray.Dataset") -> dict[str, np.ndarray]:
    """For every recorded step, whether the loss rose and who predicted it; flat arrays."""
    change = dataset["loss_change"].values
    known = np.isfinite(change) & np.isfinite(dataset["rate_principal"].values)
    signs = {"rose": change[known] > 0, "scaled": dataset["scaled_sharpness"].values[known]}
    return signs | {name: dataset[f"rate_{name}"].values[known] > 0 for name in RATES}


def _rises(dataset: "xarray.Dataset") -> list[dict[str, Any]]:
    signs = _signs(dataset)
    rows = []
    for low, high in ((0, 1), (1, 2), (2, np.inf)):
        inside = (signs["scaled"] >= low) & (signs["scaled"] < high)
        rose = signs["rose"] & inside
        row = {
            "h lambda_1": f"{low} to {high:g}" if np.isfinite(high) else f"above {low}",
            "steps": int(inside.sum()),
            "that raise the loss": int(rose.sum()),
        }
        row |= {f"predicted by {TITLES[name]}": int((rose & signs[name]).sum()) for name in RATES}
        said = signs["principal"] & inside
        row["false alarms of the principal flow"] = int((said & ~signs["rose"]).sum())
        rows.append(row)
    return rows


def _along(dataset: "xarray.Dataset") -> list[dict[str, Any]]:
    scaled = dataset["scaled_sharpness"].values
    errors = {name: dataset[f"error_{name}"].values for name in TITLES}
    known = np.isfinite(errors["gradient_flow"])
    rows = []
    for low, high in ((0, 1), (1, 2), (2, np.inf)):
        inside = known & (scaled >= low) & (scaled < high)
        if not inside.any():
            continue
        row: dict[str, Any] = {
            "h lambda_1": f"{low} to {high:g}" if np.isfinite(high) else f"above {low}",
            "steps": int(inside.sum()),
        }
        rows.append(row | {TITLES[n]: float(np.nanmedian(e[inside])) for n, e in errors.items()})
    return rows


def _claims(
    dataset: "xarray.Dataset", curves: Curves, displaced: Displaced
) -> list[dict[str, Any]]:
    rows = []
    for h, paths in curves.items():
        iterates = paths["descent"]
        points = (len(paths["principal"]) - 1) // (len(iterates) - 1)
        ends = {name: paths[name][::points] for name in ("order_2", "principal")}
        scale = np.linalg.norm(iterates[-1])
        gaps = {
            name: float(np.linalg.norm(e[-1] - iterates[-1]) / scale) for name, e in ends.items()
        }
        rows.append(
            {
                "claim": f"quadratic, h lambda_1 = {2 * h:g}: the principal flow passes through "
                "the iterates",
                "measured": f"{gaps['principal']:.1e} away, relatively; "
                f"order 2 {gaps['order_2']:.2g}",
                "holds": "yes" if gaps["principal"] < 1e-6 else "no",
            }
        )
    signs = _signs(dataset)
    rose = signs["rose"]
    agreed = float((signs["principal"] == rose).mean())
    caught = int((signs["principal"] & rose).sum())
    others = int(((signs["gradient_flow"] | signs["order_2"]) & rose).sum())
    rows += [
        {
            "claim": "the sign of sum_i Re alpha_i (g.u_i)^2 is that of the loss' change",
            "measured": f"on {agreed:.1%} of {rose.size} steps",
            "holds": "yes" if agreed >= 0.8 else "no",
        },
        {
            "claim": "the principal flow sees instabilities that gradient flow and order 2 miss",
            "measured": f"of {int(rose.sum())} steps that raise the loss: {caught}, they {others}",
            "holds": ("yes" if caught > rose.sum() / 2 and others == 0 else "no")
            if rose.any()
            else "not tested",
        },
    ]
    beyond = [row for row in displaced if row["scaled"] > 1]
    if beyond:
        ratio = min(row["order_2"] / row["principal"] for row in beyond)
        rows.append(
            {
                "claim": "displaced along u_1, h lambda_1 > 1: 10 times closer than order 2",
                "measured": f"at least {ratio:.0f} times closer",
                "holds": "yes" if ratio > 10 else "no",
            }
        )
    settled = _along(dataset)
    sharp = [row for row in settled if not row["h lambda_1"].startswith("0")]
    if sharp:
        shown = "; ".join(
            f"{row['h lambda_1']}: {row[TITLES['principal']]:.1e} against "
            f"{row[TITLES['order_2']]:.1e}"
            for row in sharp
        )
        closer = all(row[TITLES["principal"]] < row[TITLES["order_2"]] for row in sharp)
        rows.append(
            {
                "claim": "along a run, h lambda_1 > 1: closer than order 2 (median)",
                "measured": shown,
                "holds": "yes" if closer else "no",
            }
        )
    return rows


@plot.style()
def draw(dataset: "xarray.Dataset", curves: Curves, displaced: Displaced) -> dict[str, "Figure"]:
    """The figures.

    Args:
      dataset: the sweep's result.
      curves: as in `tables`.
      displaced: as in `tables`.

    Returns:
      File name without ending -> figure.
    """
    return {
        "principal_flow_quadratic": _draw_quadratic(curves),
        "principal_flow_edge": _draw_edge(dataset.isel(seed=0)),
        "principal_flow_errors": _draw_errors(dataset.isel(seed=0)),
        "principal_flow_displaced": _draw_displaced(displaced),
    }


def _draw_quadratic(curves: Curves) -> "Figure":
    figure = new_figure(5.2 * len(curves), 4.2, "E = x² + y² / 100: descent and three flows")
    for panel, (h, paths) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        iterates = paths["descent"]
        x = np.linspace(*_around(iterates[:, 0]), 80)
        y = np.linspace(*_around(iterates[:, 1]), 80)
        height = x[None, :] ** 2 + y[:, None] ** 2 / 100
        panel.contour(x, y, np.sqrt(height), 12, colors="#DDDDDD", linewidths=0.8)
        for name in ("gradient_flow", "order_2", "principal"):
            path = paths[name]
            panel.plot(path[:, 0], path[:, 1], color=COLORS[name], label=TITLES[name])
        panel.plot(iterates[:, 0], iterates[:, 1], "o", color="black", ms=4, label="descent")
        panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="x", ylabel="y")
        panel.set_title(f"h = {h:g}, h λ₁ = {2 * h:g}")
    figure.axes[0].legend(loc="upper right", fontsize=8)
    return figure


def _around(values: np.ndarray) -> tuple[float, float]:
    margin = 0.15 * (values.max() - values.min())
    return float(values.min() - margin), float(values.max() + margin)


def _draw_edge(dataset: "xarray.Dataset") -> "Figure":
    """Loss, h lambda_1, and where the principal flow predicts that the loss rises."""
    rates = dataset["learning_rate"].values
    figure = new_figure(
        3.4 * len(rates), 5.2, "The edge of stability, as the principal flow sees it"
    )
    panels = figure.subplots(2, len(rates), squeeze=False, sharex=True)
    for column, rate in enumerate(rates):
        lane = dataset.sel(learning_rate=rate)
        steps, loss = lane["step"].values, lane["loss"].values
        said = lane["rate_principal"].values > 0
        rose = lane["loss_change"].values > 0
        top, bottom = panels[0][column], panels[1][column]
        top.semilogy(steps, loss, color="#444444")
        top.semilogy(
            steps[said], loss[said], "o", color=COLORS["principal"], ms=4, label="predicted"
        )
        top.semilogy(steps[rose], loss[rose], "x", color="black", ms=6, label="rises")
        top.set_title(f"learning rate {rate:g}")
        bottom.plot(steps, lane["scaled_sharpness"].values, color="#444444")
        bottom.axhline(2, color="#666666", linestyle="--", linewidth=1)
        bottom.axhline(1, color="#666666", linestyle=":", linewidth=1)
        bottom.set_xlabel("iteration")
    panels[0][0].set_ylabel("training loss")
    panels[1][0].set_ylabel("h λ₁")
    panels[0][-1].legend(loc="upper right", title="the next step's loss")
    return figure


def _draw_errors(dataset: "xarray.Dataset") -> "Figure":
    rates = dataset["learning_rate"].values
    figure = new_figure(3.4 * len(rates), 3.4, "Error of one step, as a share of the step")
    panels = figure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for panel, rate in zip(panels, rates, strict=True):
        lane = dataset.sel(learning_rate=rate)
        for name, title in TITLES.items():
            error = lane[f"error_{name}"].values
            known = np.isfinite(error) & (error > 0)
            panel.semilogy(
                lane["step"].values[known],
                error[known],
                "o-",
                ms=3,
                color=COLORS[name],
                label=title,
            )
        panel.set(title=f"learning rate {rate:g}", xlabel="iteration")
    panels[0].set_ylabel("error / step")
    panels[0].legend(loc="upper right", fontsize=8)
    return figure


def _draw_displaced(displaced: Displaced) -> "Figure":
    figure = new_figure(6, 4, "One step from a network displaced along u₁")
    panel = figure.subplots()
    for name, title in TITLES.items():
        pairs = [(row["scaled"], row[name]) for row in displaced if row[name] > 0]
        if pairs:
            panel.semilogy(*np.array(pairs).T, "o-", ms=4, color=COLORS[name], label=title)
    for limit in (1, 2):
        panel.axvline(limit, color="#666666", linestyle=":", linewidth=1)
    panel.set(xlabel="h λ₁", ylabel="error / step")
    panel.legend()
    return figure
