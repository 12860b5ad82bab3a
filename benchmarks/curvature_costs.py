"""Sections of the curvature benchmark about costs: a product, lanes, recording in a sweep."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import driftlab as dl
from benchmarks import curvature_peers as peers
from benchmarks import peers_jax
from benchmarks.curvature_problem import Compiler, Problem, rounds
from benchmarks.report import Claim, Report
from benchmarks.timing import compare
from benchmarks.workload import Workload
from driftlab import curvature

_COUNT, _TORCH_COUNT = 25, 10
_LANES, _K = 16, 5
_EVERY = 10


def product(
    report: Report, problem: Problem, torch: peers.Torch, compiler: Compiler,
    threads: tuple[int, ...], repeats: int,
) -> None:  # fmt: skip
    """A Hessian-vector product in units of a gradient."""

    def gradients(params: PyTree, data: Any, count: int) -> PyTree:
        def step(_: Array, params: PyTree) -> PyTree:
            gradient = jax.grad(problem.loss)(params, data)
            return jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)

        return jax.lax.fori_loop(0, count, step, params)

    def linearized(params: PyTree, data: Any, count: int) -> PyTree:
        multiply = curvature.hessian(problem.loss, params, data).mv
        return _power(multiply, params, count)

    def anew(params: PyTree, data: Any, count: int) -> PyTree:
        gradient = jax.grad(lambda p: problem.loss(p, data))
        return _power(lambda v: jax.jvp(gradient, (params,), (v,))[1], params, count)

    runs: dict[str, Callable[[int], Any]] = {}
    for name, function, count in (
        ("gradient", gradients, _COUNT),
        ("driftlab's product", linearized, _COUNT),
        ("driftlab's product, twice as many", linearized, 2 * _COUNT),
        ("driftlab's product, linearised for it alone", linearized, 1),
        ("jvp of grad", anew, _COUNT),
    ):
        # The count is an argument, or XLA unrolls and simplifies a loop of one.
        run = compiler(name, function, problem.params, problem.data, count)
        runs[name] = lambda _, run=run, count=count: run(problem.params, problem.data, count)
    for count in threads:
        many = {
            "torch gradient": lambda: [torch.gradient() for _ in range(_TORCH_COUNT)],
            "PyHessian's product": lambda: torch.pyhessian_products(_TORCH_COUNT),
            "curvlinops' product": lambda: torch.curvlinops_products(_TORCH_COUNT),
        }
        for name, run in many.items():
            runs[f"{name}, {count} thread(s)"] = peers.threaded(run, count)
    timed = rounds(runs, repeats)
    longer, base = timed["driftlab's product, twice as many"], timed["driftlab's product"]
    unit = timed["gradient"]
    rows = []
    for name, one in timed.items():
        if name.endswith("alone"):
            share = 1
        elif name.endswith("thread(s)"):
            share = _TORCH_COUNT
        else:
            share = 2 * _COUNT if one is longer else _COUNT
        rows.append([name, one.median("cpu") / share, one.median("wall") / share])
        rows[-1] += [one.ratio(unit, clock) * _COUNT / share for clock in ("cpu", "wall")]
    in_loop = longer.ratio(unit) - base.ratio(unit)
    rows.append(["driftlab's product, in the loop alone", *[None] * 2, in_loop])
    rows[-1].append(longer.ratio(unit, "wall") - base.ratio(unit, "wall"))
    report.table(
        f"One product, from loops of {_COUNT}, torch's of {_TORCH_COUNT} ({problem.name})",
        ("work", "CPU s", "wall s", "gradients CPU", "gradients wall"), rows,
    )  # fmt: skip
    everything = base.ratio(unit)
    report.claims.append(
        Claim(
            "a Hessian-vector product costs <= 1.5 gradients",
            f"{in_loop:.2f} CPU in the loop, {everything:.2f} with its share of linearising",
            max(in_loop, everything) <= 1.5,
        )
    )


def lanes(report: Report, problems: list[Problem], compiler: Compiler, repeats: int) -> None:
    """The eigenvalues of 16 networks: together, one after the other in one program, and alone."""
    rows = []
    for problem in problems:
        stacked = _lanes(problem)
        alone = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(_LANES)]
        for k in (1, _K):

            def find(params: PyTree, data: Any, problem: Problem = problem, k: int = k) -> Any:
                operator = curvature.hessian(problem.loss, params, data)
                found = curvature.eigenpairs(operator, k)
                return found.values, found.products

            label = f"{problem.name}, top {k}"
            single = compiler(f"{label}, single", find, alone[0], problem.data)
            together = jax.vmap(find, (0, None))

            def in_turn(stacked: PyTree, data: Any, find: Callable = find) -> Any:
                return jax.lax.map(lambda params: find(params, data), stacked)

            def loop(
                _: int, run: Callable = single, alone: list = alone, data: Any = problem.data
            ) -> Any:
                results = [run(params, data) for params in alone]
                return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

            runs: dict[str, Callable[[int], Any]] = {f"{_LANES} single calls": loop}
            for name, function in (("jax.vmap", together), ("jax.lax.map", in_turn)):
                run = compiler(f"{label}, {name}", function, stacked, problem.data)
                runs[name] = functools.partial(_run, run, stacked, problem.data)
            timed = rounds(runs, repeats)
            base = timed[f"{_LANES} single calls"]
            for name, one in timed.items():
                products = np.asarray(one.results[-1][1])
                row = [label, name, one.median("cpu"), one.median("wall")]
                row += [one.ratio(base), one.ratio(base, "wall")]
                rows.append([*row, f"{products.min()}-{products.max()}"])
            ratio = timed["jax.vmap"].ratio(base)
            report.claims.append(
                Claim(
                    f"{_LANES} lanes vmapped cost less CPU than {_LANES} single calls, {label}",
                    f"{ratio:.2f} of it (wall {timed['jax.vmap'].ratio(base, 'wall'):.2f}; "
                    f"lax.map {timed['jax.lax.map'].ratio(base):.2f})",
                    ratio < 1,
                )
            )
    report.table(
        f"Eigenvalues of {_LANES} networks (weights times 1 + 0.1 normal)",
        ("work", "how", "CPU s", "wall s", "of single CPU", "of single wall", "products"), rows,
    )  # fmt: skip


def recording(report: Report, problem: Problem, lanes: int, seconds: float, repeats: int) -> None:
    """What recording the sharpness every ten steps adds to a sweep of full-batch descents."""
    inputs, targets = (np.asarray(array) for array in problem.data)
    first, hidden, last = problem.widths
    name = f"{first}-{hidden}-{last} tanh, {len(targets)} examples, full batch"
    work = Workload(name, (first, hidden, last), None, inputs, targets.astype(np.int32))
    candidates = [
        peers_jax.driftlab(work, lanes, name="bare"),
        peers_jax.driftlab(
            work, lanes, name="recorded", measures=(dl.measures.sharpness(),),
            record_every=_EVERY,
        ),
    ]  # fmt: skip
    rates = compare(candidates, lanes, seconds, repeats, _EVERY)
    bare, recorded = rates["bare"], rates["recorded"]
    costs = {clock: bare.ratio(recorded, clock) - 1 for clock in ("wall", "cpu")}
    rows = [[name, lanes, bare.median("wall"), recorded.median("wall")]]
    rows[0] += [100 * cost for cost in costs.values()]
    columns = ("work", "S", "lane-steps/s bare", "recorded", "overhead % wall", "% CPU")
    report.table(f"Recording the sharpness every {_EVERY} steps, k=1, warm start", columns, rows)
    report.claims.append(
        Claim(
            f"recording sharpness every {_EVERY} steps of {lanes} lanes costs < 100% of training",
            f"wall {costs['wall']:.0%}, CPU {costs['cpu']:.0%}",
            max(costs.values()) < 1,
        )
    )


def _run(function: Callable, params: PyTree, data: Any, _: int) -> Any:
    return function(params, data)


def _power(multiply: Callable[[PyTree], PyTree], params: PyTree, count: int) -> PyTree:
    def step(_: Array, vector: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: 0.1 * leaf, multiply(vector))

    return jax.lax.fori_loop(0, count, step, jax.tree.map(jnp.ones_like, params))


def _lanes(problem: Problem) -> PyTree[Array]:
    def draw(key: Array) -> PyTree[Array]:
        noise = peers.random_tree(problem.params, key)
        return jax.tree.map(lambda p, n: p * (1 + 0.1 * n), problem.params, noise)

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), _LANES))
