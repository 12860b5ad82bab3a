"""Growth of linear games' rounds, measured and from theory; the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from experiments.linear_games import ROUNDING, theory

if TYPE_CHECKING:
    import xarray

# Below this a size is no longer a number to divide by.
_SMALLEST = 1e-250


def growth(dataset: "xarray.Dataset", factor: float, divergence_factor: float) -> "xarray.Dataset":
    """How fast each lane grew, and what theory says.

    Args:
      dataset: the sweep's result.
      factor: a lane is unstable if it diverged, or its size grew by more than this in the second
        half of its run.
      divergence_factor: of the sweep.

    Returns:
      `measured`, the logarithm of the growth of `sqrt(phi^2 / a + theta^2 / b)` a round: between
      the largest sizes in the second and in the last quarter of the run (of its records that are
      not too small), a lower bound for lanes that diverged; `unstable`; `diverged`; and from
      theory `rounds` and `modified` (see `linear_games.theory`).
    """
    dims = ("game", "play", "phi_rate", "theta_rate")
    dataset = dataset.transpose(*dims, "step")
    size = dataset["size"].values
    steps = dataset.step.values
    diverged = (dataset.verdict != "ok").values
    # In contracting lanes the last record that is still a number ends the run.
    usable = np.isfinite(size) & (size > _SMALLEST)
    count = np.where(usable.all(-1), size.shape[-1], usable.argmin(-1))
    index = np.arange(size.shape[-1])

    def largest(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        inside = (index >= start[..., None]) & (index < stop[..., None])
        return np.where(inside, size, 0).max(-1)

    quarter = np.maximum(count // 4, 1)
    late = largest(count - quarter, count)
    middle = largest(quarter, 2 * quarter)
    rounds = np.maximum(count - 2 * quarter, 1) * float(np.diff(steps)[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = np.log(late / middle) / rounds
        least = np.log(divergence_factor) / 2 / dataset.verdict_step.values
    # Gone within the first records.
    measured = np.where(count < 8, np.log(_SMALLEST) / (count * np.diff(steps)[0]), measured)
    measured = np.where(diverged, least, measured)
    found = dataset[[]].assign_coords(dataset[list(dims)].coords)
    found["measured"] = (dims, measured)
    found["diverged"] = (dims, diverged)
    found["unstable"] = (dims, diverged | (measured * rounds > np.log(factor)))
    shape = measured.shape
    rows, modified = np.empty(shape), np.empty(shape)
    for i, game in enumerate(dataset.game.values):
        for j, play in enumerate(dataset.play.values):
            rates = (dataset.phi_rate.values, dataset.theta_rate.values)
            rows[i, j], modified[i, j] = theory(str(game), str(play), *rates)
    found["rounds"], found["modified"] = (dims, rows), (dims, modified)
    return found


def beyond_one_cell(
    measured: Bool[np.ndarray, "phi theta"], expected: Bool[np.ndarray, "phi theta"]
) -> Bool[np.ndarray, "phi theta"]:
    """Cells whose class differs from that of all their expected neighbours, diagonal ones as well.

    Args:
      measured: whether each cell is unstable.
      expected: what theory says.

    Returns:
      Where the measured boundary is more than a cell away from theory's.
    """
    padded = np.pad(expected, 1, mode="edge")
    rows, columns = expected.shape
    near = np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    return (near != measured[None]).all(0)


def tables(found: "xarray.Dataset") -> dict[str, list[dict[str, Any]]]:
    """Claims, and the counts of each map.

    Args:
      found: from `growth`.

    Returns:
      Heading -> rows.
    """
    rows: list[dict[str, Any]] = []
    far_cells = near_cells = maps = 0
    errors: list[float] = []
    for game in found.game.values:
        for play in found.play.values:
            lane = found.sel(game=game, play=play)
            exact = lane.rounds.values > ROUNDING
            small = lane.modified.values > ROUNDING
            measured = lane.unstable.values
            far = int(beyond_one_cell(measured, exact).sum())
            near = int((measured != exact).sum())
            slow = (lane.phi_rate * lane.theta_rate).values < 0.1
            far_cells, near_cells, maps = far_cells + far, near_cells + near, maps + 1
            kept = ~lane.diverged.values & (abs(lane.rounds.values) > ROUNDING)
            gap = abs(lane.measured.values - lane.rounds.values)[kept]
            if gap.size:
                errors.append(float(np.median(gap)))
            # Small rates are what the modified flow is for.
            apart = int((beyond_one_cell(small, exact) & slow).sum())
            rows.append(
                {
                    "game": str(game),
                    "play": str(play).replace("_", " "),
                    "lanes": measured.size,
                    "unstable": int(measured.sum()),
                    "by theory": int(exact.sum()),
                    "differ": near,
                    "by over a cell": far,
                    "modified flow differs": int((small != exact).sum()),
                    "by over a cell at a b < 0.1": apart,
                }
            )
    slow_cells = sum(row["by over a cell at a b < 0.1"] for row in rows)
    claims = [
        (
            "the measured boundary of stability is theory's, within a grid cell",
            f"{near_cells} of {found.measured.size} lanes on the other side, {far_cells} of them "
            f"more than a cell away, on {maps} maps",
            far_cells == 0,
        ),
        *_game_claims(found),
        (
            "the modified flow's boundary is that of the rounds at small rates (a b < 0.1), "
            "within a grid cell",
            f"{slow_cells} lanes more than a cell away",
            slow_cells == 0,
        ),
        (
            "measured growth is the logarithm of the spectral radius",
            f"median difference on a map at most {max(errors):.1e} a round",
            max(errors) < 1e-2,
        ),
    ]
    return {
        "Claims": [
            {"claim": text, "measured": what, "holds": "yes" if holds else "no"}
            for text, what, holds in claims
        ],
        "Maps": rows,
    }


def _game_claims(found: "xarray.Dataset") -> list[tuple[str, str, bool]]:
    """What the source says of play, on the games that are there."""
    claims = []
    both = {"simultaneous", "alternating"} <= set(found.play.values.tolist())
    if "bilinear" in found.game.values and both:
        lane = found.sel(game="bilinear")
        out = lane.unstable.sel(play="simultaneous")
        claims.append(
            (
                "bilinear: simultaneous play is unstable at all rates",
                f"{int(out.sum())} of {out.size} lanes",
                bool(out.all()),
            )
        )
        inside = (lane.phi_rate * lane.theta_rate < 4).values
        kept = ~lane.unstable.sel(play="alternating").transpose("phi_rate", "theta_rate").values
        claims.append(
            (
                "bilinear: alternating play circles while a b < 4",
                f"{int((kept & inside).sum())} of {int(inside.sum())} lanes",
                bool(kept[inside].all()),
            )
        )
    if both:
        zero_sum = [str(game) for game in found.game.values if game != "common_payoff"]
        unstable = found.unstable.sel(game=zero_sum)
        first, second = unstable.sel(play="simultaneous"), unstable.sel(play="alternating")
        better, worse = first & ~second, ~first & second
        equal = abs(found.phi_rate / found.theta_rate - 1) < 1e-6
        for text, where in (("equal rates", equal), ("all rates", equal | True)):
            if not bool(where.any()):
                continue
            most, least = int((better & where).sum()), int((worse & where).sum())
            games = sorted({str(g) for g in worse.game.values if (worse & where).sel(game=g).any()})
            claims.append(
                (
                    f"zero-sum, {text}: alternating play is stable wherever simultaneous play is",
                    f"{most} lanes where only alternating is, {least} where only simultaneous is"
                    + (f" ({', '.join(games)})" if games else ""),
                    least == 0,
                )
            )
    return claims
