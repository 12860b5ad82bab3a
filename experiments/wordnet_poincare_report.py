"""What the embeddings came to: best rates, claims, files of points, figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.patches import Circle

from driftlab import plot
from driftlab.data.relations import write_embedding
from driftlab.plot.style import new_figure, style
from driftlab.sweep import final_params
from experiments.wordnet_poincare_models import Task, embed_disc, scores

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

LABELS = {
    "probe_loss": "training loss of fixed pairs",
    "mean_rank": "mean rank",
    "mean_average_precision": "mean average precision",
    "link_mean_rank": "mean rank of held-out pairs",
    "link_mean_average_precision": "mean average precision, held out",
}
# Nickel and Kiela, 5 dimensions, reconstruction: mean rank, mean average precision.
PUBLISHED = {"mammals": (1.26, 0.927), "nouns": (4.9, 0.823)}
LABELLED = 26


def outcome(dataset: "xarray.Dataset", task: Task) -> "xarray.Dataset":
    """The records by epoch after the burn-in, with labels.

    Args:
      dataset: the sweep's.
      task: what was embedded.

    Returns:
      A dataset over optimizer, move, learning rate, seed and step.
    """
    found = dataset.assign_coords(epoch=("step", dataset.step.values / task.steps_per_epoch))
    for name, label in LABELS.items():
        if name in found:
            found[name].attrs["long_name"] = label
    return found


def best_rates(found: "xarray.Dataset") -> dict[tuple[str, str], float]:
    """The rate with the lowest median training loss at the end, for each method and move.

    Args:
      found: from `outcome`.

    Returns:
      (method, move) -> rate; without those of which every rate diverged.
    """
    last = found.probe_loss.isel(step=-1).median("seed", skipna=False)
    rates = {}
    for method in found.optimizer.values:
        for move in found.move.values:
            losses = last.sel(optimizer=method, move=move).values
            if np.isfinite(losses).any():
                rates[str(method), str(move)] = float(found.learning_rate[np.nanargmin(losses)])
    return rates


def write_embeddings(
    config: Any, task: Task, found: "xarray.Dataset", folder: Path
) -> dict[tuple[str, str], Mapping[str, float]]:
    """Writes the points of the best rate's first seed, and ranks them with all things.

    Args:
      config: of the experiment.
      task: what was embedded.
      found: from `outcome`.
      folder: the run's, of a finished sweep; gets `embedding_METHOD_MOVE.tsv`.

    Returns:
      (method, move) -> scores of those points.
    """
    score = jax.jit(scores(config, task, config.final_ranked_things))
    result = {}
    points = [(str(m), str(move)) for m in found.optimizer.values for move in found.move.values]
    for (method, move), rate in best_rates(found).items():
        lane = int(np.argmin(np.abs(found.learning_rate.values - rate))) * found.sizes["seed"]
        lanes, params = final_params(folder, points.index((method, move)))
        table = np.asarray(params)[list(lanes).index(lane)]
        name = f"embedding_{method}_{move}.tsv"
        write_embedding(folder / name, task.relations.names, table)
        result[method, move] = {k: float(v) for k, v in score(jnp.asarray(table)).items()}
    return result


def tables(
    config: Any,
    task: Task,
    found: "xarray.Dataset",
    best: Mapping[tuple[str, str], Mapping[str, float]],
) -> dict[str, list[dict[str, Any]]]:
    """What is printed.

    Args:
      config: of the experiment.
      task: what was embedded.
      found: from `outcome`.
      best: from `write_embeddings`.

    Returns:
      Heading -> rows.
    """
    rates, last = best_rates(found), found.isel(step=-1)
    rows = []
    for (method, move), rate in rates.items():
        lane = last.sel(optimizer=method, move=move, learning_rate=rate)
        row = {"method": method, "move": move, "best rate": rate}
        row["loss (median of seeds)"] = float(lane.probe_loss.median("seed"))
        row |= {LABELS[name]: value for name, value in best[method, move].items()}
        rows.append(row)
    claims = [*_published(config, found, best), *_compared(found, rates)]
    counted = [
        {
            "things": len(task.relations.names),
            "pairs": len(task.relations.pairs),
            "held out": len(task.held_out.pairs),
            "steps an epoch": task.steps_per_epoch,
            "epochs": float(found.epoch[-1]),
        }
    ]
    tables = {"Best rates": rows, "Relations": counted}
    return {"Claims": claims, **tables} if claims else tables


def _published(
    config: Any, found: "xarray.Dataset", best: Mapping[tuple[str, str], Mapping[str, float]]
) -> list[dict[str, Any]]:
    if config.relations not in PUBLISHED or config.dimension != 5 or config.held_out:
        return []
    if ("rsgd", "retraction") not in best:
        return []
    rank, precision = PUBLISHED[config.relations]
    scored = best["rsgd", "retraction"]
    epochs = float(found.epoch[-1])
    return [
        _claim(
            f"{config.relations}, 5 dimensions, RSGD: mean rank {rank} (Nickel, Kiela)",
            f"{scored['mean_rank']:.3f} after {epochs:.0f} epochs",
            scored["mean_rank"] <= rank,
        ),
        _claim(
            f"{config.relations}, 5 dimensions, RSGD: mean average precision {precision}",
            f"{scored['mean_average_precision']:.4f} after {epochs:.0f} epochs",
            scored["mean_average_precision"] >= precision,
        ),
    ]


def _compared(
    found: "xarray.Dataset", rates: Mapping[tuple[str, str], float]
) -> list[dict[str, Any]]:
    """Becigneul and Ganea's claims, on medians over seeds at the best rates."""

    def final(name: str, method: str, move: str, step: int = -1) -> float:
        lane = found[name].sel(optimizer=method, move=move, learning_rate=rates[method, move])
        return float(lane.isel(step=step).median("seed"))

    def have(*methods: str) -> bool:
        return all((method, move) in rates for method in methods)

    claims = []
    moves = [str(move) for move in found.move.values]
    for move in moves:
        present = [method for method, other in rates if other == move]
        if "radam" in present and len(present) > 1:
            losses = {method: final("probe_loss", method, move) for method in present}
            claims.append(
                _claim(
                    f"RAdam has the lowest training loss ({move})",
                    _listed(losses),
                    min(losses, key=lambda m: losses[m]) == "radam",
                )
            )
        if have("radam", "ramsgrad", "rsgd"):
            for name in ("mean_average_precision", "link_mean_average_precision"):
                if name in found and move == "exp":
                    values = {m: final(name, m, move) for m in ("rsgd", "radam", "ramsgrad")}
                    claims.append(
                        _claim(
                            f"RAdam has the highest {LABELS[name]} (exp)",
                            _listed(values),
                            max(values, key=lambda m: values[m]) == "radam",
                        )
                    )
        if have("radam", "ramsgrad", "radagrad"):
            ordered = [final("probe_loss", m, move) for m in ("radam", "ramsgrad", "radagrad")]
            claims.append(
                _claim(
                    f"RAdam before RAMSGrad, RAdagrad last ({move})",
                    "loss " + ", ".join(f"{value:.4f}" for value in ordered),
                    ordered[0] < ordered[1] < ordered[2],
                )
            )
    if {"retraction", "exp"} <= set(moves):
        for method in found.optimizer.values:
            if all((method, move) in rates for move in moves):
                losses = {move: final("probe_loss", method, move) for move in moves}
                claims.append(
                    _claim(
                        f"{method}: the retraction reaches a lower loss than exp",
                        _listed(losses),
                        losses["retraction"] < losses["exp"],
                    )
                )
    return claims


def _claim(claim: str, measured: str, holds: bool) -> dict[str, Any]:
    return {"claim": claim, "measured": measured, "holds": "yes" if holds else "no"}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


@style()
def draw(config: Any, task: Task, found: "xarray.Dataset") -> dict[str, "Figure"]:
    """The figures.

    Args:
      config: of the experiment.
      task: what was embedded.
      found: from `outcome`.

    Returns:
      File name without ending -> figure.
    """
    shown = [name for name in LABELS if name in found]
    figures = {"wordnet_poincare_curves": _curves(found, shown)}
    if found.sizes["learning_rate"] > 1:
        for name in ("probe_loss", "mean_average_precision"):
            best = "lowest" if name == "probe_loss" else "highest"
            figures[f"wordnet_poincare_{name}"] = plot.final_value(found, name, best=best)
    if config.disc_epochs:
        points = np.asarray(embed_disc(config, task))
        figures["wordnet_poincare_disc"] = _disc(config, task, points)
    return figures


def _curves(found: "xarray.Dataset", shown: list[str]) -> "Figure":
    """Each method at its best rate, against epochs."""
    columns = 3 if len(shown) > 4 or len(shown) == 3 else 2
    rows = -(-len(shown) // columns)
    figure = new_figure(4.6 * columns, 3.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    colors = matplotlib.colormaps["tab10"]
    methods = [str(method) for method in found.optimizer.values]
    for panel, name in zip(panels, shown, strict=False):
        for (method, move), rate in best_rates(found).items():
            lane = found[name].sel(optimizer=method, move=move, learning_rate=rate)
            panel.plot(
                found.epoch,
                lane.median("seed"),
                color=colors(methods.index(method)),
                linestyle="-" if move == "retraction" else "--",
                label=f"{method}, {move}, rate {rate:g}",
            )
        if not name.endswith("precision"):
            panel.set_yscale("log")
        panel.set_xlabel("epochs after the burn-in")
        panel.set_ylabel(LABELS[name])
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) < 5 else 4)
    return figure


def _disc(config: Any, task: Task, points: np.ndarray) -> "Figure":
    """The disc with the relations' direct edges faint, and the most general things by name."""
    figure = new_figure(9, 9)
    panel = figure.subplots()
    pairs, names = task.relations.pairs, task.relations.names
    below = np.bincount(pairs[:, 1], minlength=len(names))
    scaled = points * np.sqrt(-config.curvature)
    for child, parent in _direct(pairs, len(names)):
        panel.plot(*scaled[[child, parent]].T, color="#999999", linewidth=0.3, alpha=0.5, zorder=1)
    panel.scatter(*scaled.T, s=5, color="#2a6f97", zorder=2, linewidths=0)
    panel.add_patch(Circle((0, 0), 1, fill=False, color="#333333"))
    for index in _labelled(scaled, below):
        word = names[index].split(".")[0].replace("_", " ")
        panel.annotate(
            word,
            scaled[index],
            textcoords="offset points",
            xytext=(3, 3),
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "lw": 0},
            zorder=3,
        )
        panel.scatter(*scaled[index], s=22, color="#d1495b", zorder=3, linewidths=0)
    panel.set_aspect("equal")
    panel.set_xlim(-1.03, 1.03)
    panel.set_ylim(-1.03, 1.03)
    panel.set_axis_off()
    panel.set_title(f"{config.relations}: RSGD in two dimensions, {config.disc_epochs} epochs")
    return figure


def _labelled(points: np.ndarray, below: np.ndarray) -> list[int]:
    """The most general things, without those that would be written over another."""
    chosen: list[int] = []
    for index in np.argsort(-below, kind="stable"):
        apart = [np.abs(points[index] - points[other]) for other in chosen]
        if all(gap[0] > 0.16 or gap[1] > 0.045 for gap in apart):
            chosen.append(int(index))
        if len(chosen) == LABELLED:
            break
    return chosen


def _direct(pairs: np.ndarray, things: int) -> list[tuple[int, int]]:
    """Each thing with its nearest ancestor: the one that itself has the most."""
    depth = np.bincount(pairs[:, 0], minlength=things)
    nearest = np.full(things, -1)
    for child, parent in pairs:
        if nearest[child] < 0 or depth[parent] > depth[nearest[child]]:
            nearest[child] = parent
    return [(child, int(parent)) for child, parent in enumerate(nearest) if parent >= 0]
