"""The flow of every optimiser: which memory modes serve, how fast their errors fall, how far off.

    python -m experiments.optimizer_flows
    python -m experiments.optimizer_flows --config=configs/optimizer_flows_small.py

First, `modified_flow` of every optax alias and contrib optimiser on a problem of five parameters,
in 64 bits, against its iterates: the measured order of two terms, or why there is no flow. Then
the joint flows of five chains on networks on digits and mnist5k, orders 1 to 4, in both precisions.
Sources: Kovachki & Stuart (2021); Cattaneo, Klusowski & Shigida (2024); Cattaneo & Shigida (2025).
"""

import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array

from driftlab import flows, transforms
from driftlab.flows.modified import modified_flow
from driftlab.flows.solve import time_dtype
from driftlab.objective import Params
from driftlab.plot.style import LINE_COLORS, new_figure, style
from driftlab.sweep.folder import environment, opened, read_json, write_json
from experiments import flags, optimizer_cases, report

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

KEPT = "measured.json"
MODES = ("joint", "eliminate", "auto")
ORDERS = (1, 2, 3, 4)
_COST = {"joint": "2 gradients", "eliminate": "gradient + HVP", "auto": "gradient + HVP"}


def follow(
    tx: optax.GradientTransformation,
    loss: Any,
    params: Params,
    order: int,
    memory: str,
    warm: Any,
    steps: Any,
    tolerance: float,
) -> tuple[Array, Array]:
    """How far a flow is from its optimiser.

    Args:
      tx: the chain.
      loss: `loss(params)`.
      params: where the optimiser starts.
      order: terms of the flow.
      memory: its memory mode.
      warm: the iteration from which the flow follows.
      steps: for how many.
      tolerance: of the solver, relative.

    Returns:
      The Euclidean distance between the two at the end, NaN where the solve failed; and how far
      the optimiser moved meanwhile.

    Raises:
      ValueError: if there is no such flow.
    """
    flow = modified_flow(tx, loss, params, order, memory)

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": gradient, "value_fn": loss}
        takes = isinstance(tx, optax.GradientTransformationExtraArgs)
        updates, state = tx.update(gradient, state, params, **(extra if takes else {}))
        return optax.apply_updates(params, updates), state

    clock = time_dtype(params)
    start, state = jax.lax.fori_loop(0, warm, step, (params, tx.init(params)))
    end, _ = jax.lax.fori_loop(0, steps, step, (start, state))
    solved = flows.solve(
        flow.field,
        flow.init(start, state),
        jnp.asarray(steps, clock),
        t0=jnp.asarray(warm, clock),
        rtol=tolerance,
        max_steps=2**14,
    )
    gap = _distance(flow.params(solved.y), end)
    return jnp.where(solved.failed, jnp.nan, gap), _distance(end, start)


def survey(name: str, memory: str, config: Any) -> dict[str, Any]:
    """Two terms of an optimiser's flow on the toy problem, over the config's learning rates.

    Args:
      name: the optimiser, as `transforms.by_name` has it.
      memory: the mode.
      config: an `ml_collections.ConfigDict` with the fields of configs/optimizer_flows.py.

    Returns:
      `rates` and `errors`, or `refused`, the reason.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    params = jax.tree.map(jnp.asarray, optimizer_cases.TOY)

    def error(rate: Array) -> tuple[Array, Array]:
        warm, count = (
            jnp.asarray(jnp.round(span / rate), int) for span in (config.warm_time, config.time)
        )
        tx = optimizer_cases.make(name)(rate)
        return follow(tx, optimizer_cases.toy_loss, params, 2, memory, warm, count, 1e-11)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer_cases.make(name)(float(rates[0])).init(params)
            modified_flow(
                optimizer_cases.make(name)(float(rates[0])), optimizer_cases.toy_loss, params, 2,
                memory,
            )  # fmt: skip
            errors, moved = jax.jit(lambda many: jax.lax.map(error, many))(jnp.asarray(rates))
    except (ValueError, TypeError) as refusal:
        return {"refused": str(refusal).split("If it needs")[0].strip()}
    return {"rates": rates.tolist(), "errors": errors.tolist(), "moved": moved.tolist()}


def run(config: Any, folder: Path | None = None) -> "xarray.Dataset":
    """Measures everything that a config asks for.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/optimizer_flows.py.
      folder: where results are kept one by one, so that an interrupted run continues; or None.

    Returns:
      `distance` and `moved` over (network, precision, chain, order); the survey, as JSON, in the
      attribute `survey`.

    Raises:
      ValueError: if the config names no optimiser or network that exists.
    """
    import xarray

    began = time.perf_counter()
    kept: dict[str, Any] = {}
    if folder and (folder / KEPT).exists():
        kept = read_json(folder / KEPT)

    def keep(key: str, measure: Any) -> Any:
        if key not in kept:
            kept[key] = measure()
            if folder:
                write_json(folder / KEPT, kept)
        return kept[key]

    named = _names(config)
    with jax.enable_x64(True):
        surveyed = {
            name: {m: keep(f"{name}, {m}", lambda n=name, m=m: survey(n, m, config)) for m in MODES}
            for name in named
        }
    networks = [part.strip() for part in config.networks.split(",") if part.strip()]
    precisions = [part.strip() for part in config.precisions.split(",")]
    chains = [row.name for row in optimizer_cases.rows()]
    shape = (len(networks), len(precisions), len(chains), len(ORDERS))
    found = np.full((2, *shape), np.nan)
    for i, network in enumerate(networks):
        for j, precision in enumerate(precisions):
            for k, chain in enumerate(chains):
                for n, order in enumerate(ORDERS):
                    if order > config.orders:
                        continue
                    key = f"{network}, {precision}, {chain}, {order}"

                    def measure(a: Any = network, b: Any = precision, c: Any = k, d: Any = order):
                        return distances(a, b, c, d, config)

                    found[:, i, j, k, n] = keep(key, measure)
    coordinates = {"network": networks, "precision": precisions, "chain": chains, "order": ORDERS}
    return xarray.Dataset(
        {name: (tuple(coordinates), found[i]) for i, name in enumerate(("distance", "moved"))},
        {name: list(values) for name, values in coordinates.items()},
        {
            "config": json.dumps({"config": _described(config)}),
            "environment": json.dumps(environment()),
            "lanes": "map",
            "survey": json.dumps(surveyed),
            "wall_seconds": time.perf_counter() - began,
        },
    )


def distances(network: str, precision: str, chain: int, order: int, config: Any) -> list[float]:
    """One entry of the reference table.

    Args:
      network: "digits" or "mnist5k".
      precision: "float32" or "float64".
      chain: the number of its row.
      order: of the joint flow.
      config: the config.

    Returns:
      The distance at the end, and how far the optimiser moved.
    """
    with jax.enable_x64(precision == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = optimizer_cases.network(
            network, config[f"{network}_size"], config[f"{network}_hidden"]
        )
        row = optimizer_cases.rows()[chain]
        tolerance = 1e-7 if precision == "float64" else 1e-5
        measured = jax.jit(
            lambda: follow(
                row.tx, problem.loss, problem.params, order, "joint", row.warm, row.steps, tolerance
            )
        )()
        return [float(value) for value in measured]


def tables(dataset: "xarray.Dataset") -> dict[str, list[dict[str, Any]]]:
    """What serves which optimiser, and the reference table beside what was measured.

    Args:
      dataset: of `run`.

    Returns:
      Heading -> rows.
    """
    rows = []
    for name, modes in json.loads(dataset.attrs["survey"]).items():
        row: dict[str, Any] = {"optimizer": name}
        reasons = []
        for mode in MODES:
            result = modes[mode]
            if "refused" in result:
                row[mode] = "no"
                reasons.append(result["refused"].replace("|", "/").replace("\n", " "))
            else:
                errors = np.array(result["errors"])
                slope = float(flows.observed_orders(result["rates"], errors)[-1])
                relative = float(errors[-1] / result["moved"][-1])
                row[mode] = f"{slope:.2f} ({relative:.0e})"
        served = [mode for mode in MODES if row[mode] != "no"]
        row["cost"] = ", ".join(f"{m}: {_COST[m]}" for m in served if m != "auto") or "-"
        row["why not"] = reasons[0] if reasons else "-"
        rows.append(row)
    found = {"Two terms: measured order (error over distance moved)": rows} if rows else {}
    for network in dataset.network.values:
        for precision in dataset.precision.values:
            compared = []
            for reference in optimizer_cases.rows():
                here = dataset.sel(network=network, precision=precision, chain=reference.name)
                row = {"chain": reference.name, "moved": float(here.moved.max())}
                for order, claim in zip(ORDERS, reference.reference, strict=True):
                    row[f"order {order}"] = float(here.distance.sel(order=order))
                    if network == "digits":
                        row[f"reference {order}"] = claim
                compared.append(row)
            found[f"Joint flows on {network}, {precision}: distance at the end"] = compared
    return found


@style()
def draw(dataset: "xarray.Dataset") -> dict[str, "Figure"]:
    """Distance from the optimiser against the number of terms.

    Args:
      dataset: of `run`.

    Returns:
      File name without ending -> figure: circles float64, squares float32, crosses the reference.
    """
    figures = {}
    for network in dataset.network.values:
        figure = new_figure(6.4, 4.4, f"Joint flows on {network}")
        panel = figure.subplots()
        for index, reference in enumerate(optimizer_cases.rows()):
            color = LINE_COLORS[index % len(LINE_COLORS)]
            for precision in dataset.precision.values:
                here = dataset.sel(network=network, precision=precision, chain=reference.name)
                double = precision == "float64"
                panel.plot(
                    ORDERS, here.distance / here.moved, "o-" if double else "s:", color=color,
                    markersize=4, label=reference.name if double else None,
                )  # fmt: skip
        panel.set(yscale="log", xlabel="terms", ylabel="distance / distance moved")
        panel.set_xticks(ORDERS)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
        figures[f"optimizer_flows_{network}"] = figure
    return figures


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.SEEDS, flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            raise ValueError(f"--{flag.name}: this experiment has none; see --help.")
    if flags.LEARNING_RATES.value is not None:
        config.learning_rates = flags.LEARNING_RATES.value
    described = _described(config)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(flags.OUT.value or Path("runs") / f"optimizer_flows-{digest}")
    # Refused before the folder is made.
    _names(config)
    with opened(out, {"config": described}) as folder:
        dataset = run(config, folder)
        found = tables(dataset)
        summary = {"tables": found, "wall_seconds": dataset.attrs["wall_seconds"]}
        report.write_report(out, "Flows of optimisers", dataset, found, draw(dataset), summary)
    for heading, rows in found.items():
        report.print_table(heading, rows)
    print(f"{out}/report.md: the figures")


def _names(config: Any) -> list[str]:
    parts = [part.strip() for part in config.optimizers.split(",")]
    if parts == ["none"]:
        return []
    named = [name for name in transforms.names() if any(part in name for part in parts)]
    if not named:
        raise ValueError(f"optimizers={config.optimizers!r}: no optimizer has that in its name.")
    return named


def _distance(a: Params, b: Params) -> Array:
    squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    return jnp.sqrt(jnp.stack(jax.tree.leaves(squares)).sum())


def _described(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("optimizer_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
