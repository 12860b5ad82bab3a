"""SGD and Adam against their stochastic differential equations, in law.

    python -m experiments.stochastic_flows
    python -m experiments.stochastic_flows --config=configs/stochastic_flows_small.py

Weak orders: on a linear regression over real images the moments of SGD and of its modified
equations have closed equations, so errors of expectations fall with the learning rate without
Monte Carlo noise. Ensembles: a network on the same images under SGD and under the equations of
order 1 and 2, and under Adam, its equation, and Adam at a larger batch by the square-root rule.
Sources: Li, Tai & E (2017), "Stochastic modified equations and adaptive stochastic gradient
algorithms"; Malladi, Lyu, Panigrahi & Arora (2022), "On the SDEs and scaling rules for adaptive
gradient algorithms".
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array

import driftlab
from driftlab import curvature, data, models, sampling
from driftlab.dynamics import Dynamics, State
from driftlab.flows.stochastic import sgd_sde
from driftlab.flows.stochastic_adaptive import adam_sde, square_root_scaling
from driftlab.flows.stochastic_solve import sde_flow
from driftlab.sweep.folder import environment, opened
from experiments import flags, report
from experiments.stochastic_moments import expectation, of_flow, of_sgd
from experiments.stochastic_report import draw, tables

if TYPE_CHECKING:
    import xarray

QUANTITIES = ("mean", "second", "loss")
ORDERS = (1, 2)


class Regression(NamedTuple):
    """A linear regression: its objective, its start and its sharpness."""

    objective: driftlab.Objective
    start: Array
    sharpness: float


def make_regression(config: Any) -> Regression:
    """The parity of a digit from its first principal components, half the mean squared error.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.

    Returns:
      The problem, the start at zero.

    Raises:
      ValueError: if there are not so many components.
    """
    batch = _examples(config)
    inputs = np.asarray(batch.inputs, np.float64).reshape(len(batch.inputs), -1)
    if not 0 < config.features <= inputs.shape[1]:
        raise ValueError(f"features={config.features} must be 1 .. {inputs.shape[1]}.")
    inputs = inputs - inputs.mean(0)
    directions = np.linalg.svd(inputs, full_matrices=False)[2][: config.features]
    rows = inputs @ directions.T
    rows = rows / rows.std()
    targets = np.where(np.asarray(batch.targets) % 2 == 0, 1.0, -1.0)

    def loss(params: Array, batch: dict[str, Array]) -> Array:
        return jnp.mean(jnp.square(batch["x"] @ params - batch["y"])) / 2

    objective = driftlab.Objective(
        loss, {"x": rows, "y": targets}, sampling.with_replacement(config.batch_size)
    )
    sharpness = np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1]
    return Regression(objective, jnp.zeros(config.features), float(sharpness))


def weak_errors(config: Any) -> "xarray.Dataset":
    """Errors of expectations under the equations, after a fixed time.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.

    Returns:
      `error` over (order, quantity, scaled_learning_rate): the norms of those of E x and of
      E x x^T, and that of E f, a single number, which is 0 where it changes sign.
    """
    import xarray

    scaled = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    scaled = np.sort(scaled)[::-1]
    problem = make_regression(config)
    objective = problem.objective
    counts = np.maximum(np.round(config.time / scaled), 1).astype(int)

    def quantities(moments: Any) -> tuple[Array, Array, Array]:
        loss = expectation(lambda x: objective.value(x, objective.data)[0], moments)
        second = moments.covariance + jnp.outer(moments.mean, moments.mean)
        return moments.mean, second, loss

    @jax.jit
    def exact(h: Array, count: Array) -> tuple:
        return quantities(of_sgd(objective, h, problem.start, count))

    def modelled(order: int) -> Callable:
        return jax.jit(
            lambda h, end: quantities(of_flow(sgd_sde(objective, h, order), problem.start, end))
        )

    errors = np.empty((len(ORDERS), len(QUANTITIES), len(scaled)))
    programs = [modelled(order) for order in ORDERS]
    for k, (rate, count) in enumerate(zip(scaled, counts, strict=True)):
        h = rate / problem.sharpness
        truth = exact(h, count)
        for i, program in enumerate(programs):
            found = program(h, h * count)
            errors[i, :, k] = [
                float(jnp.linalg.norm(a - b)) for a, b in zip(found, truth, strict=True)
            ]
    return xarray.Dataset(
        {"error": (("order", "quantity", "scaled_learning_rate"), errors)},
        {"order": list(ORDERS), "quantity": list(QUANTITIES), "scaled_learning_rate": scaled},
    )


def make_network(config: Any, batch_size: int) -> tuple[driftlab.Objective, Any]:
    """A tanh network of one hidden layer with cross-entropy, and its start.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.
      batch_size: of batches drawn with replacement.

    Returns:
      `(objective, params)`.
    """
    batch = _examples(config)
    batch = batch._replace(inputs=jnp.asarray(batch.inputs, float))
    model = models.create("mlp", 10, widths=(config.width,), activation="tanh")
    objective = driftlab.Objective(
        models.cross_entropy(models.apply_function(model)),
        batch,
        sampling.with_replacement(batch_size),
    )
    return objective, models.initialize(model, jax.random.key(config.seed), batch.inputs)


def network_sharpness(config: Any) -> float:
    """The top eigenvalue of the network's Hessian at its start.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.
    """
    objective, params = make_network(config, 1)
    operator = curvature.hessian(objective.loss, params, objective.data)
    return float(curvature.eigenpairs(operator).values[0])


def ensemble(
    dynamics: Dynamics, begin: Callable[[Array], State], iterations: int, config: Any
) -> dict[str, np.ndarray]:
    """The full loss and the squared parameters at the end, one a seed.

    Args:
      dynamics: what is run.
      begin: `key -> State`.
      iterations: how many steps.
      config: says how many seeds.

    Returns:
      `loss` and `square`, each `(seeds,)`.
    """
    objective, _ = make_network(config, 1)

    @jax.jit
    def run(keys: Array) -> tuple[Array, Array]:
        def one(key: Array) -> tuple[Array, Array]:
            end = jax.lax.fori_loop(0, iterations, lambda _, s: dynamics.step(s), begin(key))
            square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(end.params))
            return objective.value(end.params, objective.data)[1], jnp.asarray(square)

        return jax.lax.map(one, keys, batch_size=16)

    seeds = flags.parse_seeds(config.seeds)
    base = jax.random.key(config.seed)
    keys = jnp.stack([jax.random.fold_in(base, seed) for seed in seeds])
    loss, square = run(keys)
    return {"loss": np.asarray(loss), "square": np.asarray(square)}


def sgd_ensembles(config: Any) -> dict[str, dict[str, np.ndarray]]:
    """SGD and its equations on the network, by name and learning rate.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.

    Returns:
      `"sgd 0.1"`, `"order 1 0.1"`, ... -> what `ensemble` gives.
    """
    objective, params = make_network(config, config.network_batch_size)
    found = {}
    for h in flags.parse_values(config.network_rates, "network_rates", positive=True):
        dynamics = {"sgd": driftlab.descent(optax.sgd(h), objective)}
        for order in ORDERS:
            model = sgd_sde(objective, h, order)
            dynamics[f"order {order}"] = sde_flow(model, objective, steps=config.solver_steps)
        for name, one in dynamics.items():
            begin = lambda key, one=one: one.init(params, key)  # noqa: E731
            found[f"{name} {h:.4g}"] = ensemble(one, begin, config.steps, config)
    return found


def adam_ensembles(config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Adam after a common warm-up, its equations, and Adam at another batch size.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.

    Returns:
      Name -> what `ensemble` gives.

    Raises:
      ValueError: if the scaled run would not end at the same time.
    """
    factor, h, decays = config.factor, config.adam_rate, tuple(config.adam_decays)
    if config.warm_up % factor or config.adam_steps % factor:
        raise ValueError(f"warm_up and adam_steps must be multiples of factor={factor}.")
    objective, params = make_network(config, config.adam_batch_size)
    larger, _ = make_network(config, config.adam_batch_size * factor)
    adam = driftlab.descent(optax.adam(h, *decays), objective)
    # One run of its own key, from whose end all start.
    warm = jax.jit(
        lambda: jax.lax.fori_loop(
            0, config.warm_up, lambda _, s: adam.step(s), adam.init(params, jax.random.key(99))
        )
    )()

    def begun(dynamics: Dynamics, scale: int) -> Callable[[Array], State]:
        # The same law of v's: squared gradients of a batch k times as large are k times smaller
        # where they are mostly noise, and the same age n h^2.
        memory = warm.inner[0]
        memory = memory._replace(
            nu=jax.tree.map(lambda v: v / scale, memory.nu), count=memory.count // scale
        )
        inner = (memory, *warm.inner[1:])
        return lambda key: dynamics.init(warm.params, key)._replace(inner=inner)

    found = {"adam": ensemble(adam, begun(adam, 1), config.adam_steps, config)}
    for name, squares in (("sde", False), ("sde with mean", True)):
        model = adam_sde(objective, h, *decays, mean_in_squares=squares)
        flow = sde_flow(
            model, objective, steps=1, to_state=lambda p, model=model: model.init(p, warm.inner)
        )
        begin = lambda key, flow=flow: flow.init(warm.params, key)  # noqa: E731
        found[name] = ensemble(flow, begin, config.adam_steps, config)
    rate, (b1, b2), eps = square_root_scaling(factor, h, decays, 1e-8)
    for name, tx in {
        "square root": optax.adam(rate, b1, b2, eps),
        "linear": optax.adam(factor * h, *decays),
        "unscaled": optax.adam(h, *decays),
    }.items():
        dynamics = driftlab.descent(tx, larger)
        end = config.adam_steps // factor
        found[name] = ensemble(dynamics, begun(dynamics, factor), end, config)
    return found


def run(config: Any) -> "xarray.Dataset":
    """Everything that a config asks for.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/stochastic_flows.py.

    Returns:
      `error` of the weak orders; `sgd` and `adam`, final values over (run, quantity, seed); the
      network's `sharpness` at its start.

    Raises:
      ValueError: if the config describes no experiment.
    """
    began = time.perf_counter()
    with jax.enable_x64(True):
        dataset = weak_errors(config)
    for kind, found in (("sgd", sgd_ensembles(config)), ("adam", adam_ensembles(config))):
        values = np.array([[one["loss"], one["square"]] for one in found.values()])
        coordinates = {f"{kind}_run": list(found), "final": ["loss", "square"]}
        dataset = dataset.assign_coords(coordinates)
        dataset[kind] = ((*coordinates, "seed"), values)
    dataset["sharpness"] = ((), network_sharpness(config))
    return dataset.assign_attrs(
        config=json.dumps({"config": flags.as_json(config)}),
        environment=json.dumps(environment()),
        lanes="chunk:16",
        wall_seconds=time.perf_counter() - began,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    if flags.RECORD_EVERY.value is not None:
        raise ValueError("--record_every: this experiment looks at the end of its runs only.")
    config = flags.override(config)
    described = flags.as_json(config)
    out = flags.run_folder(config, "stochastic_flows")
    with opened(out, {"config": described}) as folder:
        dataset = run(config)
        found = tables(dataset)
        report.write_report(folder, "Stochastic flows", dataset, found, draw(dataset))
    report.print_tables(out, found)


def _examples(config: Any) -> Any:
    return data.load(
        config.data, train_size=config.train_size or None, data_dir=flags.DATA_DIR.value
    ).train


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("stochastic_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
