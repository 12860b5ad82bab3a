"""Sections that time peers side by side in this process."""

import jax
import numpy as np

import driftlab as dl
from benchmarks import peers_jax, peers_torch
from benchmarks.report import Claim, Report
from benchmarks.timing import Peer, Rate, compare
from benchmarks.workload import Workload

_STRATEGIES = ("auto", "map", "chunk:4", "chunk:8", "chunk:16", "chunk:32", "vmap")
_CLOCKS = ("wall", "cpu")
_JAX_PEERS = (peers_jax.TRACED, peers_jax.VMAP, peers_jax.BAKED)
_BAKED_LANES = 8  # compiling one program a rate gets slow beyond
_RECORD_EVERY = 10


def agreement(report: Report, workload: Workload, lanes: int = 2, steps: int = 10) -> None:
    """Checks that the peers do the same work: their final losses on all data."""
    by_sweep = peers_jax.driftlab(workload, lanes, measures=(dl.measures.loss,)).run(steps)
    expected = by_sweep["loss"].values[:, -1]
    traced, vmapped = (
        peers_jax.by_hand(name, workload, lanes).run(steps)
        for name in (peers_jax.TRACED, peers_jax.VMAP)
    )
    eager = peers_torch.eager(workload, lanes, 1).run(steps)
    batched = peers_torch.vmap(workload, lanes, 1).run(steps)
    finals = [traced, _unstacked(vmapped, lanes), eager, _unstacked(batched, lanes)]
    largest = 0.0
    for final in finals:
        for lane in range(lanes):
            params = [np.asarray(leaf) for leaf in final[lane]]
            value = float(peers_jax.loss(params, workload.inputs, workload.targets))
            largest = max(largest, abs(value / expected[lane] - 1))
    report.write(
        f"The peers start alike and agree: after {steps} full-batch steps their losses differ "
        f"from driftlab's by at most {largest:.1e}, relatively."
    )


def throughput(
    report: Report,
    workloads: dict[str, Workload],
    sizes: list[int],
    middle: int,
    seconds: float,
    repeats: int,
) -> None:
    """Lane-steps a second of all peers, and the claims about them."""
    found: dict[tuple[str, int], dict[str, Rate]] = {}
    chunked: set[tuple[str, int]] = set()
    cases = {key: sizes for key in ("full_batch", "mini_batch")}
    cases |= {key: [middle] for key in ("small", "medium")}
    for key, lanes_of_case in cases.items():
        work, rows = workloads[key], []
        for lanes in lanes_of_case:
            width = str(peers_jax.driftlab(work, lanes).run(1).attrs["lanes"])
            if width != "chunk:1":
                chunked.add((key, lanes))
            rates = compare(_peers(work, lanes), lanes, seconds, repeats)
            found[key, lanes] = rates
            rows += _throughput_rows(rates, work, lanes, width)
        report.table(
            f"Lane-steps per second: {work.name} ({work.flops / 1e6:.4g} MFLOP a lane-step)",
            ("S", "peer", "wall", "+-%", "CPU", "GFLOP/s", "% peak", "% peak CPU",
             "driftlab x wall", "x CPU"), rows,
        )  # fmt: skip
    if jax.default_backend() == "cpu":
        report.claims += _claims(found, chunked, workloads)


def calibration(
    report: Report, workloads: dict[str, Workload], lanes: int, seconds: float, repeats: int
) -> None:
    """Lane strategies against each other, from which the rule behind `auto` is read."""
    rows = []
    for work in sorted(workloads.values(), key=lambda work: work.flops):
        peers = [peers_jax.driftlab(work, lanes, strategy, strategy) for strategy in _STRATEGIES]
        rates = compare(peers, lanes, seconds, repeats)
        for clock in _CLOCKS:
            medians = [rates[strategy].median(clock) for strategy in _STRATEGIES]
            rows.append([work.name, f"{work.flops / 1e6:.4g}", clock, *medians])
    columns = ("workload", "MFLOP", "clock", *_STRATEGIES)
    report.table(f"Lane-steps per second by lane strategy, S={lanes}", columns, rows)


def measures(
    report: Report, workloads: dict[str, Workload], middle: int, seconds: float, repeats: int
) -> None:
    """What recording the default measures costs."""
    rows = []
    for key, lanes in (("full_batch", min(8, middle)), ("mini_batch", middle)):
        work = workloads[key]
        peers = [
            peers_jax.driftlab(work, lanes, name="bare"),
            peers_jax.driftlab(
                work, lanes, name="recorded", measures=dl.measures.DEFAULT,
                record_every=_RECORD_EVERY,
            ),
        ]  # fmt: skip
        # Twice as long as elsewhere: a difference of a few percent is looked for.
        rates = compare(peers, lanes, 2 * seconds, repeats, _RECORD_EVERY)
        bare, recorded = rates["bare"], rates["recorded"]
        costs = [bare.ratio(recorded, clock) - 1 for clock in _CLOCKS]
        rows.append([work.name, lanes, bare.median("wall"), recorded.median("wall")])
        rows[-1] += [100 * cost for cost in costs]
        text = f"default measures every {_RECORD_EVERY} steps cost < 5%, {key}, S={lanes}"
        measured = f"wall {costs[0]:.1%}, CPU {costs[1]:.1%}"
        report.claims.append(Claim(text, measured, costs[0] < 0.05))
    columns = ("workload", "S", "bare", "recorded", "% of wall", "% of CPU")
    report.table(f"The default measures every {_RECORD_EVERY} steps", columns, rows)


def _unstacked(leaves, lanes: int) -> list:
    return [[leaf[lane] for leaf in leaves] for lane in range(lanes)]


def _peers(work: Workload, lanes: int) -> list[Peer]:
    names = _JAX_PEERS if lanes == _BAKED_LANES else _JAX_PEERS[:2]
    peers = [peers_jax.driftlab(work, lanes)]
    peers += [peers_jax.by_hand(name, work, lanes) for name in names]
    device, threads = peers_torch.device(), sorted({1, peers_torch.DEFAULT_THREADS})
    if device != "cpu":
        threads = threads[:1]
    makers = (peers_torch.eager, peers_torch.vmap)
    return peers + [maker(work, lanes, count, device) for maker in makers for count in threads]


def _throughput_rows(rates: dict[str, Rate], work: Workload, lanes: int, width: str) -> list:
    peak, own = rates["product"], rates[peers_jax.DRIFTLAB]
    rows = []
    for name, rate in rates.items():
        if name == "product":
            continue
        wall, cpu = (rate.median(clock) for clock in _CLOCKS)
        shares = [100 * work.flops * rate.ratio(peak, clock) for clock in _CLOCKS]
        label = f"{name} ({width})" if name == peers_jax.DRIFTLAB else name
        rows.append([lanes, label, wall, 100 * rate.spread(), cpu, work.flops * wall / 1e9])
        rows[-1] += [*shares, *(own.ratio(rate, clock) for clock in _CLOCKS)]
    product = [lanes, "matrix product 2048", None, 100 * peak.spread(), None]
    rows.append([*product, peak.median("wall") / 1e9, 100.0, 100.0, None, None])
    return rows


def _claims(found, chunked, workloads) -> list[Claim]:
    """What the project says about its throughput, by mode and size."""
    claims = []

    def claim(key: str, text: str, least: float, values: dict[int, dict[str, float]]) -> None:
        if not values:
            return
        listed = ", ".join(
            f"S={lanes}: {value['wall']:.2f} (CPU {value['cpu']:.2f})"
            for lanes, value in values.items()
        )
        worst = min(value["wall"] for value in values.values())
        claims.append(Claim(f"{text}, {key}", listed, worst >= least))

    for key in dict.fromkeys(key for key, _ in found):
        cases = {lanes: rates for (name, lanes), rates in found.items() if name == key}

        def against(prefixes: tuple[str, ...], cases=cases) -> dict[int, dict[str, float]]:
            """By size and clock, the ratio to the fastest peer whose name starts so."""
            return {
                lanes: {
                    clock: min(
                        rates[peers_jax.DRIFTLAB].ratio(rate, clock)
                        for name, rate in rates.items()
                        if name.startswith(prefixes)
                    )
                    for clock in _CLOCKS
                }
                for lanes, rates in cases.items()
            }

        claim(key, ">= 2.2x torch eager", 2.2, against(("torch eager",)))
        claim(key, ">= 2x torch.func.vmap", 2.0, against(("torch.func.vmap",)))
        claim(key, ">= 0.95x the best JAX by hand", 0.95, against(_JAX_PEERS))
        looped = against((peers_jax.TRACED,))
        wins = {lanes: value for lanes, value in looped.items() if (key, lanes) in chunked}
        claim(key, ">= 1.4x the jitted loop where lanes go in chunks", 1.4, wins)
        if key == "full_batch":
            flops = workloads[key].flops
            shares = {
                lanes: {
                    clock: flops * rates[peers_jax.DRIFTLAB].ratio(rates["product"], clock)
                    for clock in _CLOCKS
                }
                for lanes, rates in cases.items()
            }
            claim(key, ">= 0.85 of the matrix product's rate", 0.85, shares)
    return claims
