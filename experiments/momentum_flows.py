"""Momentum beside its flows: errors against the learning rate, the manifold, and two networks.

    python -m experiments.momentum_flows
    python -m experiments.momentum_flows --config=configs/momentum_flows_small.py

Part 1, in 64 bits: heavy ball and Nesterov (`optax.sgd`) on a quadratic, a curved valley and a
network, every iteration beside the rescaled gradient flow, the inertial flow from three initial
velocities and the modified flow, and its distance to the invariant manifold. Learning rates are
lanes. Part 2: a classifier and an autoencoder of real images, trained by gradient descent, heavy
ball and Nesterov with several momenta at one effective learning rate `h / (1 - m)`, and along the
gradient flow that all of them are claimed to follow. Each part is a sweep with a folder of its own
in the run's folder; the same command continues an interrupted run.
Source: Kovachki & Stuart (2021), "Continuous time analysis of momentum methods".
"""

import ast
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import data, measures, models
from driftlab.data.dataset import Batch
from driftlab.dynamics import Snapshot, State, from_step
from driftlab.flows.invariant_manifold import distance_to_manifold
from driftlab.flows.momentum import (
    inertial_flow,
    modified_momentum_flow,
    rescaled_gradient_flow,
    transient_momentum_flow,
)
from driftlab.flows.vector_field import Flow
from driftlab.suggestions import nearest
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import WHOLE, is_finished, parse_shard
from experiments import flags, momentum_flows_figures, momentum_flows_report, report

if TYPE_CHECKING:
    import xarray

METHODS = ("heavy_ball", "nesterov")
Problem = tuple[driftlab.Objective, Callable[[PRNGKeyArray], Any]]


class Beside(NamedTuple):
    """The inner state of an optimiser with its flows beside it.

    Attributes:
      optimizer: the optax state.
      flows: the `State` of one flow, whose ODE holds all of them: name -> state.
      errors: name -> distance of the flow from the parameters.
      manifold: order of the formula -> distance of the optimiser's state to the manifold.
    """

    optimizer: Any
    flows: State
    errors: dict[str, Float[Array, ""]]
    manifold: dict[int, Float[Array, ""]]


def beside(objective: driftlab.Objective, h: Any, m: float, nesterov: bool) -> driftlab.Dynamics:
    """`optax.sgd` with every flow of it, all at the same iteration.

    Args:
      objective: what is minimised.
      h: learning rate.
      m: momentum.
      nesterov: which method.

    Returns:
      A dynamics whose params are the optimiser's, and whose inner state is a `Beside`.
    """
    descended = driftlab.descent(optax.sgd(h, m, nesterov), objective)
    plain = Flow(rescaled_gradient_flow(objective, m), lambda params: params, lambda y: y)
    found = {
        "rescaled": plain,
        "zero": inertial_flow(objective, h, m, nesterov, "zero"),
        "slow": inertial_flow(objective, h, m, nesterov, "slow"),
        "inertial": inertial_flow(objective, h, m, nesterov),
        "modified": modified_momentum_flow(objective, h, m, nesterov),
        "unshifted": modified_momentum_flow(objective, h, m, nesterov, shadow_start=False),
        "transient": plain._replace(field=transient_momentum_flow(objective, h, m, nesterov)),
    }

    def field(t: Any, y: dict[str, Any], args: Any) -> dict[str, Any]:
        return {name: model.field(t, y[name], args) for name, model in found.items()}

    # One solve for all: each of its own would have to be compiled. Two steps of order 5 an
    # iteration are far more exact than any of the flows is.
    flows = driftlab.flow(
        field,
        h,
        objective,
        to_state=lambda params: {name: model.init(params) for name, model in found.items()},
        to_params=lambda y: found["rescaled"].params(y["rescaled"]),
        steps=2,
    )
    distances = {order: distance_to_manifold(objective, h, m, nesterov, order) for order in (1, 2)}

    def seen(params: Any, optimizer: Any, flowed: State) -> Beside:
        def apart(name: str) -> Array:
            other = found[name].params(flowed.inner.y[name])
            return optax.tree.norm(jax.tree.map(jnp.subtract, other, params))

        off = {order: find(params, optimizer[0].trace) for order, find in distances.items()}
        return Beside(optimizer, flowed, {name: apart(name) for name in found}, off)

    def init(params: Any, key: PRNGKeyArray) -> State:
        state = descended.init(params, key)
        return state._replace(inner=seen(params, state.inner, flows.init(params, key)))

    def step(state: State) -> State:
        after = descended.step(state._replace(inner=state.inner.optimizer))
        return after._replace(inner=seen(after.params, after.inner, flows.step(state.inner.flows)))

    return from_step(init, step, objective)


def errors(snapshot: Snapshot) -> dict[str, Array]:
    """`error_NAME`, the distance of each flow from the iterate, and `manifold_ORDER`."""
    inner: Any = snapshot.state.inner
    found = {f"error_{name}": value for name, value in inner.errors.items()}
    return found | {f"manifold_{order}": value for order, value in inner.manifold.items()}


def make_problems(config: Any) -> dict[str, Problem]:
    """The problems of part 1, by name.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Name -> (objective, `initialize(key) -> params`).

    Raises:
      ValueError: if there is no such problem.
    """

    def quadratic() -> Problem:
        known = data.problems.quadratic(np.array([0.3, 0.7, 1.5, 3.0, 5.0]), jax.random.key(1))
        return driftlab.Objective(known.loss), lambda key: known.initial_params

    def banana() -> Problem:
        known = data.problems.perturbed_rosenbrock()
        return driftlab.Objective(known.loss), lambda key: known.initial_params

    def network() -> Problem:
        loaded = data.load(
            "digits", train_size=config.network_size, normalization="unit", flatten=True
        )
        return _network(loaded.train, (16,), 10, models.cross_entropy)

    known = {"quadratic": quadratic, "banana": banana, "network": network}
    return {name: known[name]() for name in _names(config.problems, known, "problem")}


def make_networks(config: Any) -> dict[str, Problem]:
    """The networks of part 2, by name.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Name -> (objective, `initialize(key) -> params`).

    Raises:
      ValueError: if there is no such network, or the data do not exist.
    """
    known = {
        "classifier": (config.classifier_widths, models.cross_entropy),
        "autoencoder": (config.autoencoder_widths, models.squared_error),
    }
    names = _names(config.networks, known, "network")
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        normalization="unit",
        flatten=True,
        data_dir=flags.DATA_DIR.value,
    )
    found = {}
    for name in names:
        widths, loss = known[name]
        examples, outputs = loaded.train, loaded.num_classes
        if name == "autoencoder":
            # The mean image is not learned: it would be most of the loss and of the curvature.
            images = examples.inputs - examples.inputs.mean(0)[None]
            examples, outputs = Batch(images, images), images.shape[1]
        found[name] = _network(examples, ast.literal_eval(widths), outputs, loss)
    return found


def _network(examples: Batch, widths: tuple[int, ...], outputs: int, loss: Callable) -> Problem:
    inputs = jnp.asarray(examples.inputs, float)
    targets = jnp.asarray(examples.targets)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(float)
    model = models.create("mlp", outputs, widths=widths)
    objective = driftlab.Objective(loss(models.apply_function(model)), Batch(inputs, targets))
    return objective, lambda key: models.initialize(model, key, inputs)


def run_errors(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Part 1: the optimisers beside their flows, in 64 bits.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    counts = config.time / rates
    if len(rates) < 2 or np.abs(counts - np.rint(counts)).max() > 1e-6:
        raise ValueError(
            f"learning_rates={config.learning_rates!r}: give two or more that divide "
            f"time={config.time}, so that all have an iteration there."
        )
    with jax.enable_x64(True):
        problems = make_problems(config)
        key = jax.random.key(config.seed)
        starts = {name: jax.jit(start)(key) for name, (_, start) in problems.items()}

        def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
            name, method = hparams["problem"], hparams["method"]
            dynamics = beside(
                problems[name][0],
                hparams["learning_rate"],
                config.momentum,
                method == "nesterov",
            )
            return dynamics, starts[name]

        grid = driftlab.Grid(
            {"learning_rate": np.sort(rates)[::-1]},
            {"problem": tuple(problems), "method": METHODS},
        )
        return driftlab.sweep(
            build,
            grid,
            int(np.rint(counts.max())),
            measures=[measures.loss, errors],
            record_every=1,
            seed=config.seed,
            divergence_factor=config.divergence_factor,
            out=out,
            config=json.loads(config.to_json_best_effort()),
            **options,
        )


def training_runs(config: Any) -> dict[str, tuple[str, float]]:
    """The methods of part 2.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Label -> (method, momentum); the first is the gradient flow.
    """
    runs = {"gradient flow": ("flow", 0.0)}
    for m in flags.parse_values(config.momenta, "momenta"):
        if m == 0:
            runs["gradient descent"] = ("heavy_ball", 0.0)
        else:
            runs |= {f"{method.replace('_', ' ')} {m:g}": (method, float(m)) for method in METHODS}
    return runs


def run_training(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Part 2: two networks at one effective learning rate.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset; iteration n of every run is at the time `t = n h / (1 - m)` of gradient flow.

    Raises:
      ValueError: if the config describes no sweep.
    """
    networks, runs = make_networks(config), training_runs(config)
    seeds = flags.parse_seeds(config.seeds)
    key = jax.random.key(config.seed)

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        objective, initialize = networks[hparams["network"]]
        rate = config[f"{hparams['network']}_learning_rate"]
        method, m = runs[hparams["run"]]
        start = initialize(jax.random.fold_in(key, hparams["seed"]))
        if method == "flow":
            field = rescaled_gradient_flow(objective, 0.0)
            return driftlab.flow(field, rate, objective, rtol=1e-4), start
        tx = optax.sgd(rate * (1 - m), m, method == "nesterov")
        return driftlab.descent(tx, objective), start

    grid = driftlab.Grid({"seed": seeds}, {"network": tuple(networks), "run": tuple(runs)})
    return driftlab.sweep(
        build,
        grid,
        config.steps,
        measures=[measures.loss],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        out=out,
        config=json.loads(config.to_json_best_effort()),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    if parse_shard(flags.SHARD.value) != WHOLE:
        raise ValueError(f"--shard={flags.SHARD.value}: this experiment is not split.")
    described = json.loads(config.to_json_best_effort())
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(flags.OUT.value or Path("runs") / f"momentum_flows-{digest}")
    with opened(out, {"config": described, "x64": flags.X64.value}):
        parts = {"errors": run_errors, "training": run_training}
        finished = all(is_finished(out / name) for name in parts)
        results = {
            name: part(
                config,
                out / name,
                lanes=flags.LANES.value,
                devices=flags.DEVICES.value,
                checkpoint_seconds=flags.CHECKPOINT_SECONDS.value,
            )
            for name, part in parts.items()
        }
        if finished:
            print(f"{out} holds this run, finished; its figures are drawn again.")
        far, trained = results["errors"], results["training"]
        runs = training_runs(config)
        found = momentum_flows_report.tables(far, trained, runs, config.momentum, config.time)
        seconds = sum(dataset.attrs["wall_seconds"] for dataset in results.values())
        summary = {"tables": found, "wall_seconds": seconds}
        figures = momentum_flows_figures.draw(far, trained, runs, config)
        whole = trained.assign_attrs(wall_seconds=seconds)
        report.write_report(out, "Momentum beside its flows", whole, found, figures, summary)
    for title, rows in found.items():
        report.print_table(title, rows)
    print(f"{out}/report.md: the figures")


def _names(text: str, known: Any, what: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: {nearest(name, known)}")
    return names


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("momentum_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
