"""The principal flow: the continuous-time model of gradient descent that sees its instabilities.

    python -m experiments.principal_flow
    python -m experiments.principal_flow --config=configs/principal_flow_small.py
    python -m experiments.principal_flow --config=configs/principal_flow_cnn.py --data_dir=FOLDER

Three parts, all in 64 bits: the quadratic of the paper's first figures, every flow from one start;
a network trained at several learning rates, with what each flow says of the next step; and one step
from a state displaced along the sharpest direction. Source: Rosca, Wu, Qin, Dherin (2023), "On a
continuous time model of gradient descent dynamics and instability in deep learning".
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

import driftlab
from driftlab import measures
from driftlab.flows import solve
from driftlab.flows.principal import principal_directions, principal_flow
from driftlab.flows.principal_complex import real_neighborhood
from driftlab.sweep.lane import HParams
from experiments import flags, principal_flow_models, principal_flow_report, report
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

# E = x^T diag(1, 0.01) x: the Hessian is twice that. Learning rate -> iterations.
QUADRATIC = (2.0, 0.02)
QUADRATIC_START = (-0.35, -0.2)
QUADRATIC_RUNS = {0.9: 50, 1.05: 5}
POINTS = 40  # of a flow's curve an iteration


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Trains the network of a config at each of its learning rates.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/principal_flow.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    objective, initialize = make_objective(config)
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    grid = driftlab.Grid({"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)})

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        return driftlab.descent(optax.sgd(hparams["learning_rate"]), objective), initialize(key)

    return driftlab.sweep(
        build,
        grid,
        config.steps,
        measures=[
            measures.loss,
            principal_flow_models.predictions(config),
            measures.every(principal_flow_models.errors(config), config.errors_every),
        ],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def quadratic_curves() -> dict[float, dict[str, np.ndarray]]:
    """Descent and the flows on the paper's quadratic.

    Returns:
      Learning rate -> name -> `(times, 2)`: of `descent` the iterates, of each flow `POINTS` an
      iteration, one more at the start.
    """
    hessian, start = jnp.array(QUADRATIC), jnp.array(QUADRATIC_START)

    def loss(params: Array) -> Array:
        return jnp.sum(hessian * params**2) / 2

    curves = {}
    for h, count in QUADRATIC_RUNS.items():
        flows = {
            "gradient_flow": (principal_flow_models.modified_field(loss, h, 1), start),
            "order_2": (principal_flow_models.modified_field(loss, h, 2), start),
        }
        exact = principal_flow(loss, h, continuation="linearized")
        flows["principal"] = (exact.field, exact.init(start))

        def follow(field: Any, y: Any, h: float = h, count: int = count) -> Any:
            def advance(y: Any, _: None) -> tuple[Any, Any]:
                solved = solve(field, y, h / POINTS, rtol=1e-11, atol=1e-14)
                return solved.y, solved.y

            return jax.lax.scan(advance, y, length=count * POINTS)[1]

        factors = np.asarray(1 - h * hessian)
        iterates = np.asarray(start)[None] * factors[None] ** np.arange(count + 1)[:, None]
        curves[h] = {"descent": iterates}
        for name, (field, y) in flows.items():
            points = jax.jit(lambda y, field=field, follow=follow: follow(field, y))(y)
            points = exact.params(points) if name == "principal" else points
            curves[h][name] = np.concatenate([np.asarray(start)[None], np.asarray(points)])
    return curves


def displaced_errors(config: Any) -> list[dict[str, float]]:
    """One step from a trained network, displaced along the sharpest direction, at several rates.

    The displacement is the first whose gradient has `displaced_share` of its square there, or, if
    none has, that of the largest share.

    Args:
      config: as in `run`.

    Returns:
      For each `h lambda_1`: it, the gradient's share along u_1, and each flow's error as a share of
      the step.
    """
    objective, initialize = make_objective(config)
    rate = config.displaced_learning_rate
    gradient = jax.grad(lambda params: objective.value(params, objective.data)[0])
    directions = principal_directions(objective, 1)

    @jax.jit
    def trained(key: PRNGKeyArray) -> tuple[Any, Array]:
        def step(_: Any, params: Any) -> Any:
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient(params))

        params = jax.lax.fori_loop(0, config.displaced_steps, step, initialize(key))
        return params, directions(params)[0]

    @jax.jit
    def sharp(params: Any) -> tuple[Array, Array]:
        near, top = real_neighborhood(objective, params), directions(params)[0]
        g = near.gradient
        return (top @ g) ** 2 / (g @ g), top @ near.product(top)

    @jax.jit
    def errors(params: Any, scaled: Array, sharpness: Array) -> dict[str, Array]:
        h = scaled / sharpness
        after = jax.tree.map(lambda p, g: p - h * g, params, gradient(params))
        return principal_flow_models.step_errors(objective, params, after, h, config)

    params, direction = trained(jax.random.key(config.seed))
    flat, unravel = ravel_pytree(params)
    displaced, (share, sharpness) = params, sharp(params)
    for size in np.geomspace(1e-4, 1.0, 41):
        if share >= config.displaced_share:
            break
        there = unravel(flat + size * direction)
        found = sharp(there)
        if found[0] > share:
            displaced, (share, sharpness) = there, found
    rows = []
    for scaled in flags.parse_values(config.displaced_scaled, "displaced_scaled", positive=True):
        found = errors(displaced, scaled, sharpness)
        rows.append({"scaled": float(scaled), "share": float(share)} | jax.tree.map(float, found))
    return rows


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    jax.config.update("jax_enable_x64", True)  # a step's error is a millionth of the parameters
    config = flags.override(config)
    out = flags.run_folder(config, "principal_flow")
    dataset = flags.run_shard(partial(run, config), out)
    if dataset is None:
        return
    curves, displaced = quadratic_curves(), displaced_errors(config)
    found = principal_flow_report.tables(dataset, curves, displaced)
    figures = principal_flow_report.draw(dataset, curves, displaced)
    report.write_report(out, "The principal flow", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("principal_flow.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
