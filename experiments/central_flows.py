"""Continuous-time models of the edge of stability, side by side on the same runs.

    python -m experiments.central_flows
    python -m experiments.central_flows --config=configs/central_flows_small.py
    python -m experiments.central_flows --config.optimizers=rmsprop --steps=300

Gradient descent beside its central flow (Cohen, Damian et al. 2025), rod flow (Regis, Chewi 2026),
edge flow (Marion 2026) and stable (gradient) flow; RMSProp beside its central and stable flows.
Learning rates and seeds are lanes; each model is one compiled program, and carries the optimiser
along from the same start, so that distances are taken step by step. Every optimiser has a folder
of its own in the run's folder; figures, report.md and summary.json are beside them.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags as absl_flags
from jaxtyping import Array, PyTree

import driftlab
from driftlab import curvature, measures
from driftlab.dynamics import Dynamics, Snapshot, State, from_step
from driftlab.flows import preconditioning
from driftlab.flows.central import CentralState, averages, central_flow
from driftlab.flows.dynamics import FlowState, flow
from driftlab.flows.edge import Edge, edge_flow
from driftlab.flows.rod import Rod, rod_flow
from driftlab.flows.stable import stable_flow
from driftlab.measures.sharpness import preconditioned_sharpness
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import WHOLE, is_finished, parse_shard
from experiments import central_flows_report as found_report
from experiments import flags, report
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

MODELS = {
    "gradient_descent": ("optimizer", "central", "rod", "edge", "stable"),
    "rmsprop": ("optimizer", "central", "stable"),
}


class Accompanied(NamedTuple):
    """The inner state of a model that carries the optimiser along.

    Attributes:
      model: the model's own inner state.
      reference: the optimiser's state at the same step.
      before: the optimiser's parameters one step earlier.
    """

    model: PyTree
    reference: State
    before: PyTree


def accompanied(model: Dynamics, reference: Dynamics, objective: driftlab.Objective) -> Dynamics:
    """A model, with the optimiser from the same start beside it.

    Args:
      model: what is observed.
      reference: the optimiser.
      objective: of both.

    Returns:
      The model's dynamics; its `State.inner` is an `Accompanied`.
    """

    def init(params: Any, key: Any) -> State:
        begun, beside = model.init(params, key), reference.init(params, key)
        return begun._replace(inner=Accompanied(begun.inner, beside, beside.params))

    def step(state: State) -> State:
        inner = state.inner
        moved = model.step(state._replace(inner=inner.model))
        # The sweep holds a lane that is over at its last state; so must be what is beside it.
        beside = inner.reference._replace(step=state.step)
        after = Accompanied(moved.inner, reference.step(beside), beside.params)
        return moved._replace(inner=after)

    return from_step(init, step, objective)


def transform(config: Any, optimizer: str, rate: Any) -> optax.GradientTransformation:
    """The optax chain of an optimiser.

    Args:
      config: with `b2` and `eps`.
      optimizer: its name.
      rate: the learning rate.

    Returns:
      The chain.
    """
    if optimizer == "gradient_descent":
        return optax.sgd(rate)
    return optax.rmsprop(rate, config.b2, config.eps, eps_in_sqrt=False, bias_correction=True)


def make_build(
    config: Any, optimizer: str, objective: driftlab.Objective, initialize: Callable
) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: the config.
      optimizer: its name.
      objective: what is minimised.
      initialize: `key -> params`.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`; params are those after the warm-up.
    """
    reading = reading_of(config)

    def build(hparams: HParams, key: Any) -> tuple[Dynamics, Any]:
        rate, name = hparams["learning_rate"], hparams["model"]
        tx = transform(config, optimizer, rate)
        descended = driftlab.descent(tx, objective)
        start = descended.init(initialize(key), key)
        start = jax.lax.fori_loop(
            0, config.warm_up_steps, lambda _, state: descended.step(state), start
        )

        def resume(params: Any, key: Any) -> State:
            return State(params, start.inner, jnp.zeros((), jnp.int32), key)

        reference = descended._replace(init=resume)
        if optimizer == "gradient_descent":
            method = preconditioning.gradient_descent(rate)
        else:
            method = preconditioning.from_optax(tx, rate, opt_state=start.inner, **reading)
        if name == "optimizer":
            model = from_step(resume, descended.step, objective)
        elif name == "central":
            model = central_flow(
                objective, method, eigenvectors=config.eigenvectors, substeps=config.substeps
            )
        elif name == "stable":
            field = stable_flow(objective, method)
            model = _followed(field, 1.0, objective)
        else:
            field = {"rod": rod_flow, "edge": edge_flow}[name](objective, rate)
            model = _followed(field, rate, objective)
        return accompanied(model, reference, objective), start.params

    return build


def reading_of(config: Any) -> dict[str, Any]:
    """What `curvature.preconditioner` must be told of the optimiser.

    Args:
      config: with `b2` and `eps`.
    """
    return {"b2": config.b2, "eps": config.eps, "eps_in_sqrt": False}


def _followed(field: Any, step_time: Any, objective: driftlab.Objective) -> Dynamics:
    return flow(
        field.field,
        step_time,
        objective,
        to_state=field.init,
        to_params=field.params,
        rtol=1e-4,
        atol=1e-7,
    )


def predictions(snapshot: Snapshot) -> dict[str, Array]:
    """What a model says of the time-averaged loss, and how far it is from the optimiser.

    - `predicted_loss`: the central flow's `L + <H, Sigma> / 2`; the mean over both ends of the rod;
      the loss where the model stands for the others;
    - `oscillation`: the length of the oscillation: `sqrt(tr Sigma)`, or of half the rod;
    - `distance`: of the model to the optimiser's `(x_{n-1} + 2 x_n + x_{n+1}) / 4`, in which what
      alternates cancels; `distance_moved` is that point's from the start.

    Args:
      snapshot: of an accompanied model.

    Returns:
      Name -> scalar.
    """
    inner = snapshot.state.inner
    ahead = snapshot.next_state.inner
    now = inner.reference.params
    middle = jax.tree.map(
        lambda a, b, c: (a + 2 * b + c) / 4, inner.before, now, ahead.reference.params
    )
    value, length = snapshot.value, jnp.zeros_like(snapshot.value)
    model = inner.model
    if isinstance(model, CentralState):
        after = snapshot.next_state._replace(inner=ahead.model)
        found = averages(snapshot._replace(next_state=after))
        value, length = found["central_loss"], jnp.sqrt(found["central_variance"].sum())
    elif isinstance(model, FlowState) and isinstance(model.y, Rod | Edge):
        y = model.y
        half = y.half if isinstance(y, Rod) else _scaled(y.direction, y.amplitude)
        objective = snapshot.objective
        assert objective is not None
        shifts = (half, _scaled(half, -1))
        points = [jax.tree.map(jnp.add, y.centre, shift) for shift in shifts]
        ends = [objective.value(point, objective.data)[0] for point in points]
        value, length = (ends[0] + ends[1]) / 2, optax.tree.norm(half)
    first = snapshot.initial_params
    moved = jax.tree.map(jnp.subtract, middle, snapshot.params if first is None else first)
    return {
        "predicted_loss": value,
        "oscillation": length,
        "distance": optax.tree.norm(jax.tree.map(jnp.subtract, snapshot.params, middle)),
        "distance_moved": optax.tree.norm(moved),
    }


def _scaled(tree: PyTree, factor: Array | int) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def run(config: Any, optimizer: str, problem: Any, /, **options: Any) -> "xarray.Dataset":
    """Sweeps the models and learning rates of one optimiser.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/central_flows.py.
      optimizer: its name.
      problem: the objective, and `initialize(key) -> params`.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config's text describes no grid, or there is no such optimiser.
    """
    if optimizer not in MODELS:
        raise ValueError(f"optimizers={optimizer!r}: there are {', '.join(MODELS)}.")
    rates = flags.parse_values(
        config.learning_rates[optimizer], f"learning_rates.{optimizer}", positive=True
    )
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)},
        {"model": MODELS[optimizer]},
    )
    read = functools.partial(curvature.preconditioner, **reading_of(config))

    def diagonal(inner: Accompanied, identity_like: Any) -> Any:
        return read(inner.model, identity_like=identity_like)

    spaced = measures.every(
        preconditioned_sharpness(preconditioner=diagonal, or_identity=True), config.sharpness_every
    )
    return driftlab.sweep(
        make_build(config, optimizer, *problem),
        grid,
        config.steps,
        measures=[measures.loss, predictions, spaced],
        record_every=1,
        **options,
    )


def main(config: Any) -> None:
    """Runs the sweeps that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.SEEDS, flags.STEPS):
        if flag.value is not None:
            config[flag.name] = flag.value
    if flags.LEARNING_RATES.value is not None or flags.RECORD_EVERY.value is not None:
        raise ValueError(
            "--learning_rates and --record_every do not apply: each optimiser has its own, as in "
            "--config.learning_rates.rmsprop=1e-3, and every step is recorded."
        )
    if parse_shard(flags.SHARD.value) != WHOLE:
        raise ValueError(f"--shard={flags.SHARD.value}: this experiment is not split.")
    names = config.optimizers.split(",")
    problem = make_objective(config)
    described = json.loads(config.to_json_best_effort())
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(flags.OUT.value or Path("runs") / f"central_flows-{digest}")
    options = {
        "lanes": flags.LANES.value,
        "devices": flags.DEVICES.value,
        "seed": config.seed,
        "divergence_factor": config.divergence_factor,
        "config": described,
        "checkpoint_seconds": flags.CHECKPOINT_SECONDS.value,
    }
    with opened(out, {"config": described, "x64": flags.X64.value}):
        finished = all(is_finished(out / name) for name in names)
        results = {name: run(config, name, problem, out=out / name, **options) for name in names}
        if finished:
            print(f"{out} holds this run, finished; its figures are drawn again.")
        found = found_report.tables(results, config.window)
        whole = found_report.joined(results)
        summary = {"tables": found, "wall_seconds": whole.attrs["wall_seconds"]}
        figures = found_report.draw(results, config.window)
        report.write_report(out, "Models of the edge of stability", whole, found, figures, summary)
    for title, rows in found.items():
        report.print_table(title, rows)
    print(f"{out}/report.md: the figures")


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("central_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
