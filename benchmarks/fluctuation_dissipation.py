"""The cost of tracking the fluctuation-dissipation relation, and of the schedules built on it.

    python -m benchmarks.fluctuation_dissipation [--lanes=1,8] [--quick] [--out=FILE.md]

Training steps of Yaida's perceptron, 784-200-200-10 at a batch of 100, inside one compiled loop:
plain `optax.sgd`, the same tracked, and the adaptive schedules, in interleaved rounds. What counts
is the median over rounds of a way's time over that of plain SGD in the same round.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import driftlab
from benchmarks import report as reports
from benchmarks.timing import Seconds, measure
from driftlab import models, sampling
from driftlab.measures.fluctuation_tracking import track_fluctuation_dissipation
from driftlab.transforms.fluctuation_dissipation_schedule import fluctuation_dissipation_sgd
from driftlab.transforms.sasa import sasa

_LANES = flags.DEFINE_list("lanes", ["1", "8"], "How many lanes advance together, under vmap.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Rounds; the median counts.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 400, "Steps of a round, of one lane.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Ten steps, two rounds, to try it out.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")

_BATCH, _EXAMPLES, _MOMENTUM, _LIMIT = 100, 4000, 0.9, 1.05
PLAIN = "optax.sgd"
WAYS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    PLAIN: lambda rate: optax.sgd(rate, _MOMENTUM),
    "tracked": lambda rate: track_fluctuation_dissipation(
        optax.sgd(rate, _MOMENTUM), rate, _MOMENTUM
    ),
    "tracked, every 8th": lambda rate: track_fluctuation_dissipation(
        optax.sgd(rate, _MOMENTUM), rate, _MOMENTUM, every=8
    ),
    "ratio": lambda rate: fluctuation_dissipation_sgd(rate, _MOMENTUM, interval=40),
    "norm_trend": lambda rate: fluctuation_dissipation_sgd(
        rate, _MOMENTUM, interval=40, test="norm_trend"
    ),
    "sasa": lambda rate: sasa(rate, _MOMENTUM, interval=40),
}


def main(arguments: list[str]) -> None:
    """Times the ways at each number of lanes and prints a table each."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    report = reports.Report(_OUT.value)
    report.write(f"jax {jax.__version__}, {jax.devices()}, batch {_BATCH}, float32\n")
    for lanes in (int(text) for text in _LANES.value):
        steps = 10 if _QUICK.value else max(10, _STEPS.value // lanes)
        rows = timed(lanes, steps, 2 if _QUICK.value else _REPEATS.value)
        columns = ("step", "wall ms", "wall, times plain", "processor, times plain")
        report.table(f"{lanes} lanes, {steps} steps a round", columns, rows)
        for way in (name for name in WAYS if name.startswith("tracked")):
            ratio = next(row[3] for row in rows if row[0] == way)
            claim = f"{way}: costs under 5% of a step, {lanes} lanes"
            measured = f"{100 * (ratio - 1):+.1f}%"
            report.claims.append(reports.Claim(claim, measured, ratio < _LIMIT))
    report.finish()


def timed(lanes: int, steps: int, repeats: int) -> list[tuple[str, float, float, float]]:
    """The rows of one number of lanes.

    Args:
      lanes: lanes together.
      steps: of a round.
      repeats: rounds.

    Returns:
      (way, milliseconds a lane-step, wall and processor time over those of plain SGD).
    """
    objective, initialize = _problem()
    rates = jnp.geomspace(0.01, 0.1, lanes)

    def program(make: Callable[[Any], optax.GradientTransformation]) -> Callable[[int], Any]:
        def lane(rate: Any, count: Any) -> Any:
            dynamics = driftlab.descent(make(rate), objective)
            state = dynamics.init(initialize(jax.random.key(0)), jax.random.key(1))
            return jax.lax.fori_loop(0, count, lambda _, state: dynamics.step(state), state)

        together = jax.jit(jax.vmap(lane, in_axes=(0, None)))
        return lambda count: jax.block_until_ready(together(rates, count))

    runs = {name: program(make) for name, make in WAYS.items()}
    for run in runs.values():
        run(2)
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(measure(run, steps))

    def over_plain(name: str, clock: str) -> float:
        pairs = zip(seconds[name], seconds[PLAIN], strict=True)
        return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)

    return [
        (
            name,
            1e3 * statistics.median(s.wall for s in seconds[name]) / steps / lanes,
            over_plain(name, "wall"),
            over_plain(name, "cpu"),
        )
        for name in runs
    ]


def _problem() -> tuple[driftlab.Objective, Callable[[Any], Any]]:
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.randn(_EXAMPLES, 784), jnp.float32)
    labels = jnp.asarray(random.randint(0, 10, _EXAMPLES))
    model = models.create("mlp", 10, widths=(200, 200), activation="relu")
    objective = driftlab.Objective(
        models.cross_entropy(models.apply_function(model)),
        (inputs, labels),
        sampling.with_replacement(_BATCH),
    )
    objective = driftlab.regularized(
        objective, lambda params, batch: optax.tree.norm(params, squared=True) / 2, 0.01
    )
    return objective, lambda key: models.initialize(model, key, inputs)


if __name__ == "__main__":
    app.run(main)
