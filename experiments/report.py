"""What an experiment leaves behind: figures, summary.json, report.md, a table on the screen."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from driftlab import plot
from driftlab.sweep.folder import SUMMARY, write_json

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def write_report(
    folder: Path,
    title: str,
    dataset: "xarray.Dataset",
    tables: Mapping[str, Rows],
    figures: Mapping[str, "Figure"],
) -> None:
    """Writes the figures, `summary.json` (tables and seconds) and a `report.md` that embeds them.

    Each file is written to a temporary name and renamed.

    Args:
      folder: the run's folder.
      title: the report's heading.
      dataset: the run's result; its attrs say where and how it ran.
      tables: heading -> rows; rows share their columns.
      figures: file name without ending -> figure.
    """
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        plot.save(figure, folder / "figures" / f"{name}.png")
    summary = {"tables": tables, "wall_seconds": dataset.attrs["wall_seconds"]}
    write_json(folder / SUMMARY, summary)
    environment = json.loads(dataset.attrs["environment"])
    versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
    lines = [
        f"# {title}",
        "",
        f"- command: `{' '.join(environment['command'])}`",
        f"- devices: {', '.join(environment['devices'])}; lanes: {dataset.attrs['lanes']}",
        f"- wall time: {dataset.attrs['wall_seconds']:.1f} s",
        f"- versions: {versions}; revision {environment['git']}",
        "",
    ]
    for heading, rows in tables.items():
        lines += [f"## {heading}", "", *markdown_table(rows), ""]
    for name in figures:
        label = name.replace("_", " ")
        lines += [f"## {label[0].upper()}{label[1:]}", "", f"![{label}](figures/{name}.png)", ""]
    config = json.dumps(json.loads(dataset.attrs["config"])["config"], indent=2)
    lines += ["## Config", "", "```json", config, "```", ""]
    report = folder / "report.md"
    temporary = report.with_name(f"report.md.partial-{os.getpid()}")
    temporary.write_text("\n".join(lines))
    temporary.replace(report)


def markdown_table(rows: Rows) -> list[str]:
    """Rows as the lines of a Markdown table.

    Args:
      rows: name -> value each, all with the first row's names.

    Returns:
      The lines; none for no rows.
    """
    if not rows:
        return []
    names = list(rows[0])
    lines = [
        "| " + " | ".join(map(_escaped, names)) + " |",
        "| " + " | ".join("---" for _ in names) + " |",
    ]
    return lines + ["| " + " | ".join(_escaped(row[name]) for name in names) + " |" for row in rows]


def _escaped(value: Any) -> str:
    """A cell without what Markdown takes for a column's end or a reference."""
    return cell(value).replace("|", "\\|").replace("][", "]\\[")


def print_table(title: str, rows: Rows) -> None:
    """Shows rows on the screen.

    Args:
      title: the table's heading.
      rows: name -> value each, all with the first row's names.
    """
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    # Where there is no terminal to measure, a table is not to be cut at 80 columns.
    Console(width=None if os.isatty(1) else 120).print(table)


def print_tables(folder: Path, tables: Mapping[str, Rows]) -> None:
    """Shows all of a report's tables on the screen, and says where the figures are.

    Args:
      folder: the run's folder.
      tables: heading -> rows.
    """
    for title, rows in tables.items():
        print_table(title, rows)
    print(f"{folder}/report.md: the figures")


def cell(value: Any) -> str:
    """A value as a table shows it: numbers to four digits, None as a dash.

    Args:
      value: a string, number, None or sequence of these.
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " .. ".join(cell(part) for part in value)
    return str(value)
