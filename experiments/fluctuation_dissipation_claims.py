"""What Yaida (2019) claims, beside what the runs of fluctuation_dissipation measured."""

from typing import Any

import numpy as np

from experiments.fluctuation_dissipation_models import SASA


def equilibrated(second: list[dict[str, Any]], first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rates at which the first relation holds to 5%, of networks that learned.

    Args:
      second: rows of the second relation.
      first: those of the first.

    Returns:
      Rows of the second one.
    """
    return [
        row
        for row, other in zip(second, first, strict=True)
        if None not in (row["ratio"], other["ratio"])
        and abs(other["ratio"] - 1) < 0.05
        and other["training loss"] < other["at the start"] / 2
    ]


def first_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the sides meet, and later at smaller rates.

    Args:
      rows: from `first_rows`.

    Returns:
      The rows of claims.
    """
    known = [row for row in rows if row["ratio"] is not None]
    still = [row for row in known if abs(row["trend of the norm (t)"]) < 2]
    worst = max((abs(row["ratio"] - 1) for row in still), default=None)
    lives = [row["half-life"] for row in known if row["half-life"] is not None]
    claims = [
        {
            "claim": "where the weight norm has no trend, |t| < 2: left / right within 2% of 1",
            "measured": "no such rate"
            if worst is None
            else f"{len(still)} rates, at most {100 * worst:.2g}% away",
            "holds": _verdict(None if worst is None else worst < 0.02),
        },
        {
            "claim": "equilibrium comes later at smaller rates",
            "measured": f"half-lives {', '.join(f'{x:.0f}' for x in lives)} steps",
            "holds": _verdict(lives == sorted(lives, reverse=True) if len(lives) > 1 else None),
        },
    ]
    return claims


def second_claims(
    rows: list[dict[str, Any]], first: list[dict[str, Any]], fits: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Whether the second relation holds at small rates, and G is linear there only.

    Args:
      rows: from `second_rows`.
      first: from `first_rows`.
      fits: from `fit_rows`.

    Returns:
      The rows of claims.
    """
    good = equilibrated(rows, first)
    if not good:
        return []
    low, high = good[0], good[-1]
    bar = 2 * abs(low["ratio"])
    bar *= np.hypot(low["its error"] / low["G"], low["error"] / low["eta v'Hv' / 2"])
    claims = [
        {
            "claim": "second relation: sides agree at the smallest rate that equilibrated",
            "measured": f"ratio {low['ratio']:.3f} +- {bar:.3f} at {low['learning rate']:g}",
            # Bars as long as half the value would let anything hold.
            "holds": _verdict(None if bar > 0.5 else abs(low["ratio"] - 1) < max(bar, 0.1)),
        },
        {
            "claim": "and depart from each other as the rate grows",
            "measured": f"ratio {high['ratio']:.3f} at {high['learning rate']:g}",
            "holds": _verdict(
                None
                if bar > 0.5 or len(good) < 2
                else abs(high["ratio"] - 1) > abs(low["ratio"] - 1)
            ),
        },
    ]
    if fits:
        fit = fits[-1]
        claims.append(
            {
                "claim": "the loss is not harmonic: G bends away from a line",
                "measured": f"curvature {fit['curvature']:.3g} +- {fit['error']:.2g}",
                "holds": _verdict(abs(fit["curvature"]) > 2 * fit["error"]),
            }
        )
    return claims


def schedule_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The adaptive schedule beside steps by hand and the other tests.

    Args:
      rows: from `schedule_rows`.

    Returns:
      The rows of claims.
    """
    by_name = {row["schedule"]: row for row in rows}
    steps = [row for row in rows if row["schedule"].startswith("step")]
    claims = []
    for name in ("ratio", "norm_trend", SASA):
        if name not in by_name or not steps:
            continue
        row = by_name[name]
        best = max(steps, key=lambda other: other["test accuracy"])
        claims.append(
            {
                "claim": f"{name}: no less accurate than steps by hand at equal epochs",
                "measured": f"{row['test accuracy']:.4f}, {best['schedule']} "
                f"{best['test accuracy']:.4f}",
                "holds": _verdict(row["test accuracy"] >= best["test accuracy"]),
            }
        )
    return claims


def _verdict(holds: bool | None) -> str:
    return "-" if holds is None else ("yes" if holds else "no")
