"""Sections of the curvature benchmark about spectra: eigenvalues, trace, density."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from benchmarks import curvature_peers as peers
from benchmarks.curvature_problem import Compiler, Judge, Problem, Timed, rounds
from benchmarks.report import Claim, Report
from driftlab import curvature

_K = 5
# Ten times the rounding of a product in float32: what is below is equal.
_ROUNDING = 1e-6


def eigenvalues(
    report: Report, problem: Problem, torch: peers.Torch, compiler: Compiler,
    threads: int, repeats: int,
) -> None:  # fmt: skip
    """The five largest eigenvalues."""
    judge = Judge(problem, _K)
    runs: dict[str, Callable[[int], Any]] = {}
    ours = {
        "driftlab, tolerance 1e-4": {"tolerance": 1e-4},
        "driftlab, tolerance 1e-2": {"tolerance": 1e-2},
        "driftlab, 25 products": {"tolerance": 1e-30, "max_products": 25},
    }
    for name, options in ours.items():

        def find(params: PyTree, data: Any, key: Array, options: dict = options) -> Any:
            operator = curvature.hessian(problem.loss, params, data)
            found = curvature.eigenpairs(operator, _K, key=key, **options)
            return found.values, found.vectors, found.products

        runs[name] = _jax_peer(compiler, name, find, problem)
    for name, product in _matfree_products(problem).items():

        def decompose(params: PyTree, data: Any, key: Array, product: Callable = product) -> Any:
            multiply = product(params, data)
            return *peers.matfree_eigenpairs(multiply, params, _K, 25, key), 25

        runs[name] = _jax_peer(compiler, name, decompose, problem)
    runs["curvlinops + eigsh, tolerance 1e-4"] = peers.threaded(
        functools.partial(torch.curvlinops_eigenpairs, _K, 1e-4), threads
    )
    runs["PyHessian, tolerance 1e-3"] = peers.threaded(
        functools.partial(torch.pyhessian_eigenpairs, _K, 1e-3), threads
    )
    timed = rounds(runs, repeats)
    rows, exactness = [], {}
    base = timed["driftlab, tolerance 1e-4"]
    for name, one in timed.items():
        residual, error = exactness[name] = judge.errors(*one.results[-1][:2])
        products = float(np.median([int(result[2]) for result in one.results]))
        rows.append([name, one.median("cpu"), one.median("wall"), products])
        rows[-1] += [residual, error, one.ratio(base), one.ratio(base, "wall")]
    listed = ", ".join(f"{value:.6f}" for value in judge.values)
    report.table(
        f"The {_K} largest eigenvalues: {listed}",
        ("peer", "CPU s", "wall s", "products", "residual", "error", "x driftlab CPU", "x wall"),
        rows,
    )
    report.write(
        "Residual: the largest `|Hv - lambda v| / lambda_1` of the five, in float64. Error: of the "
        "values against float64 Lanczos at residual 1e-9, over lambda_1. Both of the last round. "
        f"A residual or an error below {_ROUNDING:.0e} counts as equal: all multiply in float32, "
        "with errors of 1e-7; only ARPACK keeps its vectors in float64. torch: "
        f"{threads} thread(s)."
    )
    for prefix, least in (("curvlinops", 8.0), ("PyHessian", 15.0), ("matfree", 1.0)):
        report.claims.append(_at_equal_exactness(timed, exactness, prefix, least))


def trace(
    report: Report, problem: Problem, torch: peers.Torch, compiler: Compiler,
    threads: int, repeats: int, products: int,
) -> None:  # fmt: skip
    """The trace, at equal products and at equal standard error."""
    runs: dict[tuple[str, str], Callable[[int], Any]] = {}
    methods = ("hutchinson", "hutch++", "xtrace")
    for method in methods:

        def estimate(params: PyTree, data: Any, key: Array, method: str = method) -> Any:
            operator = curvature.hessian(problem.loss, params, data)
            found = curvature.trace(operator, key, products, method)
            return found.value, found.standard_error

        runs["driftlab", method] = _jax_peer(compiler, f"driftlab, {method}", estimate, problem)
    product = _matfree_products(problem)["matfree, driftlab's product"]

    def by_matfree(params: PyTree, data: Any, key: Array) -> Any:
        return peers.matfree_trace(product(params, data), params, products, key)

    runs["matfree", "hutchinson"] = _jax_peer(compiler, "matfree, trace", by_matfree, problem)
    for method in methods:
        run = functools.partial(torch.curvlinops_trace, method, products)
        runs["curvlinops", method] = peers.threaded(run, threads)
    runs["PyHessian", "hutchinson"] = peers.threaded(
        functools.partial(torch.pyhessian_trace, products), threads
    )
    timed = rounds({f"{peer}, {method}": run for (peer, method), run in runs.items()}, repeats)
    errors = {method: _root_mean_square(timed[f"driftlab, {method}"]) for method in methods}
    target = 0.01 * abs(_mean(timed["driftlab, xtrace"]))
    rows, costs = [], {}
    for peer, method in runs:
        one = timed[f"{peer}, {method}"]
        own = None if peer == "curvlinops" else _root_mean_square(one)
        # Standard errors fall like 1 / sqrt(products), those of hutch++ and xtrace faster.
        costs[peer, method] = one.median("cpu") * (errors[method] / target) ** 2
        rows.append([method, peer, one.median("cpu"), one.median("wall"), _mean(one)])
        rows[-1] += [own, costs[peer, method], one.ratio(timed[f"driftlab, {method}"])]
    report.table(
        f"The trace from {products} products",
        ("method", "peer", "CPU s", "wall s", "mean of rounds", "standard error",
         "CPU s to 1%", "x driftlab CPU"), sorted(rows, key=lambda row: methods.index(row[0])),
    )  # fmt: skip
    report.write(
        "Standard error: as each peer estimates it (curvlinops does not), root mean square over "
        "the rounds. CPU s to 1%: to a standard error of 1% of the trace, if it falls like one "
        f"over the root of the products; one method has one error. torch: {threads} thread(s)."
    )
    best = min(cost for (peer, _), cost in costs.items() if peer == "driftlab")
    for prefix in ("curvlinops", "PyHessian"):
        theirs = {method: cost for (peer, method), cost in costs.items() if peer == prefix}
        method = min(theirs, key=theirs.__getitem__)
        plain = theirs["hutchinson"] / costs["driftlab", "hutchinson"]
        report.claims.append(
            Claim(
                f"trace: >= 5x less CPU than {prefix} at equal standard error, best methods",
                f"{theirs[method] / best:.2f}x (its {method}); Hutchinson both: {plain:.2f}x",
                theirs[method] >= 5 * best,
            )
        )


def density(
    report: Report, problem: Problem, torch: peers.Torch, compiler: Compiler,
    threads: int, repeats: int, steps: int,
) -> None:  # fmt: skip
    """The spectral density by stochastic Lanczos quadrature; costs are those of a probe."""
    probes = 2  # the fewest that have a standard error

    def estimate(params: PyTree, data: Any, key: Array) -> Any:
        operator = curvature.hessian(problem.loss, params, data)
        rule = curvature.quadrature(operator, key, probes, steps)
        return rule.trace_of(lambda nodes: nodes).value, rule.nodes.min(), rule.nodes.max()

    ends: dict[str, tuple[float, float]] = {}

    def given() -> Any:
        return torch.curvlinops_density(steps, ends["driftlab"])

    ours = _jax_peer(compiler, f"driftlab, density, {probes} probes", estimate, problem)
    ends["driftlab"] = (float(ours(0)[1]), float(ours(0)[2]))
    runs = {
        "driftlab": ours,
        "curvlinops": peers.threaded(lambda: torch.curvlinops_density(steps), threads),
        "curvlinops, ends given": peers.threaded(given, threads),
        "PyHessian": peers.threaded(lambda: torch.pyhessian_density(steps), threads),
    }
    timed = rounds(runs, repeats)
    rows = []
    for name, one in timed.items():
        share = probes if name == "driftlab" else 1
        ratio = one.ratio(timed["driftlab"]) * probes / share
        rows.append([name, one.median("cpu") / share, one.median("wall") / share])
        rows[-1] += [ratio, _density_summary(name, one, problem)]
        if name != "driftlab":
            text = f"density: >= 5x less CPU a probe than {name}"
            if name == "PyHessian":
                text += ", which crashes after its products"
            report.claims.append(Claim(text, f"{ratio:.2f}x", ratio >= 5))
    report.table(
        f"The spectral density, {steps} steps, a probe",
        ("peer", "CPU s", "wall s", "x driftlab CPU", "found"), rows,
    )  # fmt: skip
    report.write(
        "The estimator is the same (a random vector's Gauss rule of as many steps), so equal "
        "probes are equal standard errors; curvlinops does not re-orthogonalise. Without ends "
        f"given it first looks for them with ARPACK, once a call. torch: {threads} thread(s)."
    )


def _density_summary(name: str, timed: Timed, problem: Problem) -> str:
    result = timed.results[-1]
    if isinstance(result, str):
        return result
    if name == "driftlab":
        value, low, high = map(float, result)
    else:
        grid, values = result
        weights = values / values.sum()
        value, low, high = problem.size * float(weights @ grid), grid[0], grid[-1]
    return f"trace {value:.3g}, from {low:.3g} to {high:.3g}"


def _jax_peer(
    compiler: Compiler, name: str, function: Callable, problem: Problem
) -> Callable[[int], Any]:
    """A compiled `function(params, data, key)` as a peer, with a new key each round."""
    keys = functools.partial(jax.random.fold_in, jax.random.key(7))
    run = compiler(name, function, problem.params, problem.data, keys(0))
    return lambda index: run(problem.params, problem.data, keys(index))


def _matfree_products(problem: Problem) -> dict[str, Callable]:
    """Two ways to multiply: as matfree's documentation does, and ours."""

    def documented(params: PyTree, data: Any) -> Callable[[PyTree], PyTree]:
        gradient = jax.grad(lambda p: problem.loss(p, data))
        return lambda vector: jax.jvp(gradient, (params,), (vector,))[1]

    def linearized(params: PyTree, data: Any) -> Callable[[PyTree], PyTree]:
        return curvature.hessian(problem.loss, params, data).mv

    return {
        "matfree, 25 products, jvp of grad": documented,
        "matfree, driftlab's product": linearized,
    }


def _at_equal_exactness(
    timed: dict[str, Timed], exactness: dict[str, tuple[float, float]], prefix: str, least: float
) -> Claim:
    """Our cheapest run that is at least as exact as a peer's, against the peer's cheapest."""
    name = min(
        (name for name in timed if name.startswith(prefix)),
        key=lambda name: timed[name].median("cpu"),
    )
    fit = [
        one
        for one in timed
        if one.startswith("driftlab")
        and all(
            ours <= max(theirs, _ROUNDING)
            for ours, theirs in zip(exactness[one], exactness[name], strict=True)
        )
    ]
    text = f"top {_K}: >= {least:g}x less CPU than {prefix} at equal or better residual and error"
    # What is nearest, where none is as exact.
    own = min(fit, key=lambda one: timed[one].median("cpu")) if fit else "driftlab, 25 products"
    ratio, wall = timed[name].ratio(timed[own]), timed[name].ratio(timed[own], "wall")
    measured = f"{ratio:.2f}x (wall {wall:.2f}x): {own} against {name}"
    if not fit:
        measured += "; but its residual is larger"
    return Claim(text, measured, bool(fit) and ratio >= least)


def _mean(timed: Timed) -> float:
    return float(np.mean([float(value) for value, _ in timed.results]))


def _root_mean_square(timed: Timed) -> float:
    return float(np.sqrt(np.mean([float(error) ** 2 for _, error in timed.results])))
