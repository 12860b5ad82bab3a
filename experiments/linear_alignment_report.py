"""What linear_alignment found, beside the claims of Ji & Telgarsky and the predicted drift."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from driftlab.flows.order import fitted_order
from driftlab.measures.layer_balance import momentum_balancedness_factor
from experiments import flags

if TYPE_CHECKING:
    import xarray

Results = Mapping[str, "xarray.Dataset"]
LEVELS = (-2.0, -5.0, -10.0, -20.0, -50.0)  # of the log-risk, at which the flow is looked at


def tables(results: Results, config: Any, margins: Mapping[str, float]) -> dict[str, list[dict]]:
    """Claims against what was measured, and the numbers behind them.

    Args:
      results: part -> dataset, of the parts that were run.
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.
      margins: problem -> the largest margin there is.

    Returns:
      Heading -> rows.
    """
    trained = [name for name in ("plane", "images") if name in results]
    claims, found = [], {}
    for name in trained:
        claims += _descent_claims(name, results[name], margins[name])
    if trained:
        found["Gradient descent, medians over seeds"] = [
            row for name in trained for row in _descent_rows(name, results[name])
        ]
    if "flow" in results:
        claims += _flow_claims(results["flow"])
        heading = "Gradient flow at given risks, the tightest tolerance, medians over seeds"
        found[heading] = _flow_rows(results["flow"])
    if "drift" in results:
        for name in results["drift"].problem.values:
            claims += _drift_claims(results["drift"], str(name), config)
        found["Balancedness at time n h"] = _drift_rows(results["drift"], config)
    if "cnn" in results:
        claims += _cnn_claims(results["cnn"], config)
        heading = "Dense layers of the convolutional network, medians over seeds"
        found[heading] = _cnn_rows(results["cnn"], config)
    return {"Claims (Ji & Telgarsky 2019; the drift: derived)": claims, **found}


def layers(dataset: "xarray.Dataset", informative: bool = True) -> list[str]:
    """The variables of the layers' ratios.

    Args:
      dataset: of a part.
      informative: whether to leave out a linear network's last layer, whose ratio is 1 always.

    Returns:
      Names, first layer first.
    """
    names = sorted(str(name) for name in dataset.data_vars if str(name).startswith("spectral_"))
    return names[:-1] if informative else names


def _claim(part: str, claim: str, measured: str, holds: Any) -> dict[str, str]:
    return {"part": part, "claim": claim, "measured": measured, "holds": "yes" if holds else "no"}


def _count(good: Any, of: Any = True) -> str:
    good = np.asarray(good, bool)
    of = np.broadcast_to(of, good.shape)
    return f"{int((good & of).sum())} of {int(of.sum())} lanes"


def _descent_claims(name: str, dataset: "xarray.Dataset", margin: float) -> list[dict]:
    deep = dataset.isel(depth=-1)
    ok, last = dataset.verdict == "ok", dataset.isel(step=-1)
    cosine, ratio = last.direction_cosine, last.margin_ratio
    constant = dict(step_size="constant")
    learned = (last.log_risk < -5) & ok
    begun = dataset.direction_cosine.isel(step=(dataset.log_risk < -3).argmax("step"))
    turning = (cosine > begun) | (cosine > 0.999)
    first, second = last.sel(constant).isel(depth=0), last.sel(constant).isel(depth=-1)
    both = (ok.sel(constant).isel(depth=0)) & (ok.sel(constant).isel(depth=-1))
    faster = (second.log_risk < first.log_risk).values
    falls = (np.diff(dataset.log_risk.sel(step_size="proved"), axis=-1) <= 0).all(-1)
    kept = (deep.alignment_excess <= deep.alignment_excess_bound).all("step")
    kept &= (deep.alignment_slack >= 0).all("step")
    low, high = (float(f(cosine.where(learned))) for f in (np.nanmin, np.nanmax))
    return [
        _claim(
            name,
            "every depth ends at the max-margin separator (cosine above 0.99)",
            f"gamma = {margin:.4g}; where log risk < -5: cosine {low:.5f} .. {high:.5f}, margin / "
            f"gamma {float(ratio.where(learned).min()):.3f} .. "
            f"{float(ratio.where(learned).max()):.3f}; {_count(cosine > 0.99, learned)}",
            bool(((cosine > 0.99) | ~learned).all()),
        ),
        _claim(
            name,
            "and turns towards it: the cosine grows below risk e^-3, or is above 0.999",
            _count(turning, learned),
            bool((turning | ~learned).all()),
        ),
        _claim(
            name,
            "constant h: the deep network's risk falls faster than one layer's",
            _count(faster, both.values),
            (faster | ~both.values).all(),
        ),
        _claim(
            name,
            "proved step sizes, times h: the risk falls from record to record",
            _count(falls),
            falls.all(),
        ),
        _claim(
            name,
            "lemma 2, of the flow, on gradient descent's iterates too",
            _count(kept, ok.isel(depth=-1)),
            bool((kept | ~ok.isel(depth=-1)).all()),
        ),
    ]


def _descent_rows(name: str, dataset: "xarray.Dataset") -> list[dict]:
    rows = []
    for depth in dataset.depth.values:
        for step_size in dataset.step_size.values:
            for rate in dataset.learning_rate.values:
                lane = dataset.sel(depth=depth, step_size=step_size, learning_rate=rate)
                lane = lane.isel(step=-1)
                if not (lane.verdict == "ok").any():
                    values: dict[str, Any] = dict.fromkeys(_COLUMNS)
                else:
                    values = _numbers(lane.where(lane.verdict == "ok"), depth > 1)
                rows.append(
                    {
                        "problem": name,
                        "depth": int(depth),
                        "steps": str(step_size),
                        "h": float(rate),
                        **values,
                    }
                )
    return rows


_COLUMNS = ("log risk", "cosine", "margin / gamma", "ratios", "alignments", "<w/prod, v_1>")


def _numbers(lane: "xarray.Dataset", deep: bool) -> dict[str, Any]:
    """A lane's values at one record, medians over seeds."""
    pairs = sorted(str(name) for name in lane.data_vars if str(name).startswith("alignment_layer"))

    def median(name: str) -> float:
        return float(np.nanmedian(lane[name].values))

    return {
        "log risk": median("log_risk"),
        "cosine": round(median("direction_cosine"), 6),
        "margin / gamma": median("margin_ratio"),
        "ratios": [median(name) for name in layers(lane)] if deep else None,
        "alignments": [median(name) for name in pairs] if deep else None,
        "<w/prod, v_1>": median("predictor_alignment") if deep else None,
    }


def _tightest(dataset: "xarray.Dataset") -> "xarray.Dataset":
    # By a dict: sel has an argument of its own called tolerance.
    return dataset.sel({"tolerance": dataset.tolerance.values.min()})


def _flow_claims(dataset: "xarray.Dataset") -> list[dict]:
    rows = []
    for name in dataset.problem.values:
        lanes = _tightest(dataset).sel(problem=name)
        excess = float((lanes.alignment_excess / lanes.alignment_excess_bound).max())
        slack = float(lanes.alignment_slack.min())
        part = f"flow, {name}"
        rows.append(
            _claim(
                part,
                "lemma 2 at all times: excess <= D, and the alignment's bound",
                f"excess at most {excess:.3f} D; least slack {slack:.3f}",
                excess <= 1 and slack >= 0,
            )
        )
        last = lanes.isel(step=-1)
        # From the first record at a risk of e^-5 on: before, layers still shed their start.
        begun = lanes.isel(step=(lanes.log_risk < -5).argmax("step"))
        names = [n for n in layers(lanes)]
        names += sorted(str(n) for n in lanes.data_vars if str(n).startswith("alignment_layer"))
        growing = [bool((last[n] > begun[n]).all()) for n in names]
        rows.append(
            _claim(
                part,
                "below risk e^-5 every ratio and every alignment grows",
                f"{sum(growing)} of {len(growing)}; at log risk {float(last.log_risk.max()):.0f} "
                f"ratios >= {min(float(last[n].min()) for n in layers(lanes)):.3f}, alignments >= "
                f"{min(float(last[n].min()) for n in names[len(layers(lanes)) :]):.4f}",
                all(growing),
            )
        )
        rows.append(
            _claim(
                part,
                "the predictor turns towards the max-margin direction",
                f"cosine {float(begun.direction_cosine.median()):.5f} at "
                f"risk e^-5, {float(last.direction_cosine.median()):.6f} at the end; "
                f"margin / gamma {float(last.margin_ratio.median()):.4f}",
                bool((last.direction_cosine > begun.direction_cosine).all()),
            )
        )
        drift = dataset.balancedness_drift.sel(problem=name).isel(step=-1).max("seed")
        values = [float(value) for value in drift.sortby("tolerance", ascending=False)]
        rows.append(
            _claim(
                part,
                "balancedness is conserved to the solver's tolerance",
                ", ".join(
                    f"{value:.1e} at {tolerance:.0e}"
                    for value, tolerance in zip(
                        values, sorted(dataset.tolerance.values, reverse=True), strict=True
                    )
                ),
                values[-1] < 1e-6,
            )
        )
    return rows


def _flow_rows(dataset: "xarray.Dataset") -> list[dict]:
    rows = []
    for name in dataset.problem.values:
        lanes = _tightest(dataset).sel(problem=name)
        risks = lanes.log_risk.median("seed").values
        # The first record at each level, and the last one of all.
        reached = [int((risks <= level).argmax()) for level in LEVELS if risks.min() <= level]
        for record in dict.fromkeys([*reached, len(risks) - 1]):
            lane = lanes.isel(step=record)
            excess = float(lane.alignment_excess.max())
            rows.append(
                {
                    "problem": str(name),
                    **_numbers(lane, True),
                    "excess": excess,
                    "D": float(lane.alignment_excess_bound.max()),
                }
            )
    return rows


def drifts(
    dataset: "xarray.Dataset", problem: str, time: float
) -> tuple[dict[str, Float[np.ndarray, "rates entries"]], Float[np.ndarray, " entries"]]:
    """`B(time) - B(0)` of every dynamics and learning rate, and the integral I.

    Args:
      dataset: of the part `drift`.
      problem: which.
      time: n h.

    Returns:
      `(dynamics -> one row a learning rate, I)`; I by the trapezoidal rule along the gradient flow
      of the smallest learning rate. NaN where a lane has diverged.
    """
    rates = dataset.learning_rate.values
    counts = np.rint(time / rates).astype(int)
    lanes = dataset.sel(problem=problem)
    found = {}
    for name in dataset.dynamics.values:
        balance = lanes.balance.sel(dynamics=name).values
        found[str(name)] = np.stack([balance[i, n] - balance[i, 0] for i, n in enumerate(counts)])
    finest = int(rates.argmin())
    source = lanes.source.sel(dynamics="gradient_flow").values[finest, : counts[finest] + 1]
    integral = rates[finest] * (source.sum(0) - (source[0] + source[-1]) / 2)
    return found, integral


def _drift_claims(dataset: "xarray.Dataset", problem: str, config: Any) -> list[dict]:
    rates = dataset.learning_rate.values
    found, integral = drifts(dataset, problem, config.drift_time)
    size, part = np.linalg.norm(integral), f"drift, {problem}"
    descent = found["gradient_descent"]
    smallest = int(rates.argmin())
    slope = np.linalg.norm(descent[smallest]) / rates[smallest] / size
    to_integral = np.linalg.norm(descent - rates[:, None] * integral, axis=1)
    to_modified = np.linalg.norm(descent - found["modified_flow"], axis=1)
    still = np.linalg.norm(found["gradient_flow"], axis=1).max()
    lanes = dataset.sel(problem=problem, dynamics="gradient_descent")
    error = float(lanes.balancedness_error.max())
    rows = [
        _claim(
            part,
            "every step of gradient descent changes B by h^2 D exactly",
            f"sum of h^2 D off by at most {error:.1e} after {int(lanes.step.values[-1])} steps",
            error < 1e-12,
        ),
        _claim(
            part,
            "gradient descent drifts by h I: slope within 5%",
            f"|drift| / (h |I|) = {slope:.4f} at h = {rates[smallest]:g}",
            abs(slope - 1) < 0.05,
        ),
        _claim(
            part,
            "order 2 of drift - h I, and of drift - that of the modified flow",
            f"{_order(rates, to_integral):.2f}, {_order(rates, to_modified):.2f}",
            min(_order(rates, to_integral), _order(rates, to_modified)) > 1.8,
        ),
        _claim(
            part,
            "gradient flow has none",
            f"at most {still:.1e}, {still / size / rates.min():.1e} of the least h |I|",
            still < 1e-3 * size * rates.min(),
        ),
    ]
    for name in ("heavy_ball", "nesterov"):
        if name not in found:
            continue
        factor = float(momentum_balancedness_factor(config.momentum, name == "nesterov"))
        parallel = found[name] @ integral / size**2 / rates
        rows.append(
            _claim(
                part,
                f"{name.replace('_', ' ')} {config.momentum:g}: {factor:g} times that of "
                "gradient descent as h falls, within 5%",
                ", ".join(
                    f"{value:.3f} at h = {rate:g}"
                    for value, rate in zip(parallel, rates, strict=True)
                ),
                abs(parallel[smallest] / factor - 1) < 0.05,
            )
        )
    if "adam" in found:
        norms = np.linalg.norm(found["adam"], axis=1)
        order = _order(rates, norms)
        rows.append(
            _claim(
                part,
                "Adam's drift does not vanish with h",
                f"{norms[smallest]:.3g} at h = {rates[smallest]:g}, order {order:.2f} in h",
                order < 0.5 and norms[smallest] > 10 * np.linalg.norm(descent[smallest]),
            )
        )
    return rows


def _order(rates: Any, errors: Any) -> float:
    """The fitted order over the smaller half of the learning rates."""
    half = np.argsort(rates)[: max(len(rates) // 2 + 1, 2)]
    return fitted_order(rates[half], errors[half])


def _drift_rows(dataset: "xarray.Dataset", config: Any) -> list[dict]:
    rows = []
    rates = dataset.learning_rate.values
    for problem in dataset.problem.values:
        found, integral = drifts(dataset, str(problem), config.drift_time)
        for name, values in found.items():
            for rate, value, flow in zip(rates, values, found["modified_flow"], strict=True):
                rows.append(
                    {
                        "problem": str(problem),
                        "dynamics": name,
                        "h": float(rate),
                        "drift / h": float(np.linalg.norm(value) / rate),
                        "I": float(np.linalg.norm(integral)),
                        "drift - h I": float(np.linalg.norm(value - rate * integral)),
                        "drift - modified flow's": float(np.linalg.norm(value - flow)),
                    }
                )
    return rows


def dense_ranks(config: Any) -> dict[str, int]:
    """The largest rank of each dense layer of the convolutional network.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.

    Returns:
      Layer's name -> min(inputs, outputs), the inputs of the first one taken to be the more.
    """
    arguments = flags.parse_arguments(config.cnn.model_args, "model_args")
    widths = (*arguments.get("dense_widths", ()), 10)
    names = [*(f"dense_{place}" for place in range(len(widths) - 1)), "output"]
    return {
        name: min(width, widths[max(place - 1, 0)])
        for place, (name, width) in enumerate(zip(names, widths, strict=True))
    }


def _cnn_claims(dataset: "xarray.Dataset", config: Any) -> list[dict]:
    rows = []
    ranks = dense_ranks(config)
    for start in dataset.start.values:
        lanes = dataset.sel(start=start)
        ok = (lanes.verdict == "ok").values
        first, last = lanes.isel(step=0), lanes.isel(step=-1)
        ends = {name: last[f"spectral_ratio_{name}"].values[ok] for name in ranks}
        begins = {name: first[f"spectral_ratio_{name}"].values[ok] for name in ranks}
        above = min(float(ends[name].min() * rank**0.5) for name, rank in ranks.items())
        grown = {name: float((ends[name] / begins[name]).min()) for name in ranks}
        rows.append(
            _claim(
                f"cnn, {start}",
                "dense layers end far above 1 / sqrt(rank) (at twice that or more)",
                ", ".join(
                    f"{name} {float(np.median(ends[name])):.3f} ({rank**-0.5:.3f})"
                    for name, rank in ranks.items()
                )
                + f"; at least {above:.2f} times",
                above > 2,
            )
        )
        rows.append(
            _claim(
                f"cnn, {start}",
                "and above their start",
                "at least " + ", ".join(f"{name} x {grown[name]:.2f}" for name in ranks),
                min(grown.values()) > 1,
            )
        )
    return rows


def _cnn_rows(dataset: "xarray.Dataset", config: Any) -> list[dict]:
    rows = []
    for start in dataset.start.values:
        for rate in dataset.learning_rate.values:
            lane = dataset.sel(start=start, learning_rate=rate)
            for name, rank in dense_ranks(config).items():
                ratio = lane[f"spectral_ratio_{name}"].median("seed")
                rows.append(
                    {
                        "start": str(start),
                        "h": float(rate),
                        "layer": name,
                        "1 / sqrt(rank)": rank**-0.5,
                        "at the start": float(ratio.isel(step=0)),
                        "at the end": float(ratio.isel(step=-1)),
                        "test accuracy": float(
                            lane.evaluation_accuracy.median("seed").isel(step=-1)
                        ),
                    }
                )
    return rows
