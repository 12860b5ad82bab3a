"""The flow of every optimiser: which memory modes serve, how fast their errors fall, how far off.

    python -m experiments.optimizer_flows
    python -m experiments.optimizer_flows --config=configs/optimizer_flows_small.py

First, `modified_flow` of every optax alias and contrib optimiser on a problem of five parameters,
in 64 bits, against its iterates: the measured order of two terms, or why there is no flow. Then
the joint flows of five chains on networks on digits and mnist5k, orders 1 to 4, in both precisions;
and the eliminated fields of the optimisers whose flows were derived by hand, beside those.
Sources: Kovachki & Stuart (2021); Cattaneo, Klusowski & Shigida (2024); Cattaneo & Shigida (2025).
"""

import json
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array

from driftlab import flows
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
    dynamic: Sequence[str] | None = None,
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
      dynamic: for `augment`, the memory that stays.

    Returns:
      The Euclidean distance between the two at the end, NaN where the solve failed; and how far
      the optimiser moved meanwhile.

    Raises:
      ValueError: if there is no such flow.
    """
    flow = modified_flow(tx, loss, params, order, memory, dynamic=dynamic)

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
      name: the optimiser, of `optimizer_cases.OPTIMIZERS`.
      memory: the mode.
      config: an `ml_collections.ConfigDict` with the fields of configs/optimizer_flows.py.

    Returns:
      `rates` and `errors`, or `refused`, the reason.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    params = jax.tree.map(jnp.asarray, optimizer_cases.TOY)
    make = optimizer_cases.OPTIMIZERS[name]

    def error(rate: Array) -> tuple[Array, Array]:
        warm, count = (
            jnp.asarray(jnp.round(span / rate), int) for span in (config.warm_time, config.time)
        )
        return follow(
            make(rate), optimizer_cases.toy_loss, params, 2, mode, warm, count, 1e-11, dynamic
        )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Once with a learning rate that is known: more is judged there.
            mode, dynamic = memory, None
            if memory != "eliminate":
                known = make(float(rates[0]))
                flow = modified_flow(known, optimizer_cases.toy_loss, params, 2, memory)
                if memory == "auto":
                    # What it chose, as in the lanes decays may depend on what is traced there.
                    dynamic = list(flow.init(params, _after_a_step(known, params)).memory)
                    mode, dynamic = ("augment", dynamic) if dynamic else ("eliminate", None)
            errors, moved = jax.jit(lambda many: jax.lax.map(error, many))(jnp.asarray(rates))
    except (ValueError, TypeError) as refusal:
        return {"refused": _one_line(str(refusal))}
    return {"rates": rates.tolist(), "errors": errors.tolist(), "moved": moved.tolist()}


def _after_a_step(tx: optax.GradientTransformation, params: Params) -> Any:
    """A state whose flags of a first step are down."""
    value, gradient = jax.value_and_grad(optimizer_cases.toy_loss)(params)
    extra = {"value": value, "grad": gradient, "value_fn": optimizer_cases.toy_loss}
    takes = isinstance(tx, optax.GradientTransformationExtraArgs)
    return tx.update(gradient, tx.init(params), params, **(extra if takes else {}))[1]


def run(config: Any, folder: Path | None = None) -> "xarray.Dataset":
    """Measures everything that a config asks for.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/optimizer_flows.py.
      folder: where results are kept one by one, so that an interrupted run continues; or None.

    Returns:
      `distance` and `moved` over (network, precision, chain, order); as JSON the survey and the
      comparison by hand, in the attributes `survey` and `by_hand`.

    Raises:
      ValueError: if the config names no optimiser or network that exists.
    """
    import xarray

    kept: dict[str, Any] = {}
    if folder and (folder / KEPT).exists():
        kept = read_json(folder / KEPT)

    def keep(key: str, measure: Any) -> Any:
        if key not in kept:
            began = time.perf_counter(), time.process_time()
            kept[key] = measure()
            wall, cpu = kept.get("seconds", (0.0, 0.0))
            ended = time.perf_counter(), time.process_time()
            kept["seconds"] = [wall + ended[0] - began[0], cpu + ended[1] - began[1]]
            if folder:
                write_json(folder / KEPT, kept)
        return kept[key]

    named = _names(config)
    with jax.enable_x64(True):
        surveyed = {
            name: {m: keep(f"{name}, {m}", lambda n=name, m=m: survey(n, m, config)) for m in MODES}
            for name in named
        }
    by_hand = keep("by hand", lambda: identities(config)) if config.by_hand else {}
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
            "config": json.dumps({"config": flags.as_json(config)}),
            "environment": json.dumps(environment()),
            "lanes": "map",
            "survey": json.dumps(surveyed),
            "by_hand": json.dumps(by_hand),
            "orders": config.orders,
            "wall_seconds": kept.get("seconds", (0.0, 0.0))[0],
            "cpu_seconds": kept.get("seconds", (0.0, 0.0))[1],
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


def identities(config: Any) -> dict[str, list[float]]:
    """The eliminated fields of two terms beside those that papers derived by hand.

    Args:
      config: the config, for the size of the network on digits; 64 bits.

    Returns:
      For each optimiser the largest relative difference between the two over all parameters, and
      the cost of the eliminated field over that of a gradient and a Hessian-vector product, in
      floating-point operations as XLA counts them.
    """
    rate = 0.01
    with jax.enable_x64(True):
        loss, params = optimizer_cases.network("digits", config.digits_size, config.digits_hidden)
        fields = {
            "gradient descent": (optax.sgd(rate), flows.gradient_descent_flow(
                loss, rate, 2, route="closed_form")),
            "heavy ball": (optax.sgd(rate, momentum=0.9),
                           flows.modified_momentum_flow(loss, rate, 0.9).field),
            "Nesterov": (optax.sgd(rate, momentum=0.9, nesterov=True),
                         flows.modified_momentum_flow(loss, rate, 0.9, nesterov=True).field),
            "RMSProp": (optax.rmsprop(rate, decay=0.9, eps=1e-4),
                        flows.rmsprop_flow(loss, rate, 0.9, eps=1e-4, stationary=True)),
            "Adam": (optax.adam(rate, eps=1e-4, eps_root=1e-6), flows.adam_flow(
                loss, rate, eps=1e-4, eps_root=1e-6, stationary=True)),
        }  # fmt: skip
        product = _flops(lambda p: _gradient_and_product(loss, p), params)
        found = {}
        for name, (tx, by_hand) in fields.items():
            flow = modified_flow(tx, loss, params, 2, "eliminate")
            # The papers' time is h a unit of iteration time.
            expected = jax.tree.map(lambda v: rate * v, jax.jit(by_hand)(0.0, params, None))
            derived = jax.jit(flow.field)(0.0, params, None)
            gap = jax.tree.map(
                lambda a, b: jnp.max(abs(a - b)) / jnp.max(abs(b)), derived, expected
            )
            cost = _flops(lambda p, f=flow: f.field(0.0, p, None), params) / product
            found[name] = [max(float(leaf) for leaf in jax.tree.leaves(gap)), cost]
    return found


def _gradient_and_product(loss: Any, params: Params) -> Any:
    gradient, product = jax.linearize(jax.grad(loss), params)
    return gradient, product(gradient)


def _flops(function: Any, params: Params) -> float:
    counted: Any = jax.jit(function).lower(params).compile().cost_analysis()
    return float(counted["flops"])


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
                reasons.append(f"{mode}: {result['refused']}")
            else:
                errors = np.array(result["errors"])
                slope = float(flows.observed_orders(result["rates"], errors)[-1])
                relative = float(errors[-1] / max(result["moved"][-1], 1e-30))
                if not np.isfinite(errors).all():
                    row[mode] = "unsolved"
                elif not relative > 1e-10:
                    row[mode] = f"rounding ({relative:.0e})"
                else:
                    row[mode] = f"{slope:.2f} ({relative:.0e})"
        served = [mode for mode in MODES if row[mode] != "no"]
        row["cost"] = ", ".join(f"{m}: {_COST[m]}" for m in served if m != "auto") or "-"
        if len(reasons) == len(MODES):
            reasons = [reasons[0].removeprefix(f"{MODES[0]}: ")]
        row["why not"] = " ".join(reasons) or "-"
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
    claims = _claims(dataset)
    return found | ({"Claims": claims} if claims else {})


def _claims(dataset: "xarray.Dataset") -> list[dict[str, str]]:
    """What was claimed, what was measured, whether it holds."""
    claims = []

    def claim(text: str, measured: str, holds: bool) -> None:
        claims.append({"claim": text, "measured": measured, "holds": "yes" if holds else "no"})

    orders = [order for order in ORDERS if order <= dataset.attrs["orders"]]
    for network in dataset.network.values:
        for precision in dataset.precision.values:
            here = dataset.distance.sel(network=network, precision=precision, order=orders)
            if network == "digits":
                expected = np.array(
                    [row.reference[: len(orders)] for row in optimizer_cases.rows()]
                )
                ratios = here.transpose("chain", "order").values / expected
                solved = ratios[np.isfinite(ratios)]
                within = int(((solved <= 2) & (solved >= 0.5)).sum())
                span = f"; ratios {solved.min():.2g} to {solved.max():.2g}" if solved.size else ""
                claim(
                    f"digits, {precision}: distances of the reference within a factor of two",
                    f"{within} of {ratios.size}{span}",
                    within == ratios.size,
                )
            if len(orders) < 2:
                continue
            gains = here.isel(order=slice(-1)).values / here.isel(order=slice(1, None)).values
            least = float(np.min(gains)) if np.isfinite(gains).all() else float("nan")
            claim(
                f"{network}, {precision}: every term brings the flow nearer",
                f"at least {least:.2g} times a term",
                least > 1,
            )
    for name, (gap, cost) in json.loads(dataset.attrs["by_hand"]).items():
        claim(
            f"{name}: eliminate is the field derived by hand, to 1e-12, for a gradient and a "
            "Hessian-vector product",
            f"{gap:.1e}; {cost:.2f} of their operations",
            gap <= 1e-12 and cost < 1.25,
        )
    for mode in MODES:
        slopes = {
            name: flows.observed_orders(modes[mode]["rates"], modes[mode]["errors"])[-1]
            for name, modes in json.loads(dataset.attrs["survey"]).items()
            if "refused" not in modes[mode]
        }
        if not slopes:
            continue
        off = sorted(name for name, slope in slopes.items() if not slope >= 1.75)
        claim(
            f"{mode}: two terms have order 2 (1.75 or more) wherever the flow exists",
            f"{len(slopes) - len(off)} of {len(slopes)}"
            + (f"; not {', '.join(off)}" if off else ""),
            not off,
        )
    return claims


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
    described = flags.as_json(config)
    out = flags.run_folder(config, "optimizer_flows")
    # Refused before the folder is made.
    _names(config)
    with opened(out, {"config": described}) as folder:
        dataset = run(config, folder)
        found = tables(dataset)
        report.write_report(out, "Flows of optimisers", dataset, found, draw(dataset))
    report.print_tables(out, found)


def _names(config: Any) -> list[str]:
    parts = [part.strip() for part in config.optimizers.split(",")]
    if parts == ["none"]:
        return []
    named = [name for name in sorted(optimizer_cases.OPTIMIZERS) if any(p in name for p in parts)]
    if not named:
        raise ValueError(f"optimizers={config.optimizers!r}: no optimizer has that in its name.")
    return named


def _one_line(reason: str) -> str:
    """The first sentence of an error, short enough for a table."""
    # What an optimiser itself complains of comes after the kind of its error.
    said = re.split(r": (?:ValueError|TypeError|AttributeError): ", reason.strip())[-1]
    first = re.split(r"(?<=[.;?])\s|\n", said, maxsplit=1)[0]
    first = " ".join(first.replace("|", "/").split()).rstrip(";")
    return first if len(first) <= 160 else first[:157] + "..."


def _distance(a: Params, b: Params) -> Array:
    squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    return jnp.sqrt(jnp.stack(jax.tree.leaves(squares)).sum())


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("optimizer_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
