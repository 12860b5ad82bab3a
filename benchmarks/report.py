"""The report of a benchmark: Markdown tables on standard output and in a file."""

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "torch")


class Claim(NamedTuple):
    """Something the project says about its speed.

    Attributes:
        text: the claim.
        measured: what was found.
        holds: whether it is so.
    """

    text: str
    measured: str
    holds: bool


class Report:
    """Collects a report and prints it as it grows.

    Attributes:
        claims: what the sections found about the project's claims.
    """

    def __init__(self, out: str | None):
        self.claims: list[Claim] = []
        self._out = Path(out) if out else None
        self._text = ""

    def write(self, text: str) -> None:
        """Adds a paragraph; the file is rewritten whole."""
        print(text, end="\n\n", flush=True)
        self._text += f"{text}\n\n"
        if self._out:
            self._out.write_text(self._text.rstrip("\n") + "\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Adds a table under a heading; numbers are aligned to the right."""
        self.write(f"## {title}")
        self.write(markdown(columns, rows))

    def finish(self) -> None:
        """Adds the claims."""
        if self.claims:
            rows = [(c.text, c.measured, "yes" if c.holds else "NO") for c in self.claims]
            self.table("Claims", ("claim", "measured", "holds"), rows)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lays out a Markdown table so that it reads well as plain text too.

    Args:
        columns: headings.
        rows: cells; numbers get four significant digits.

    Returns:
        The table.
    """
    rows = list(rows)
    cells = [list(columns), *([number(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(row, widths, right, strict=True)
        )
        + " |"
        for row in cells
    ]
    rule = [
        "-" * (width + 1) + (":" if on_right else "-")
        for width, on_right in zip(widths, right, strict=True)
    ]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def number(value: Any) -> str:
    """A table's cell: numbers with a precision that fits their size, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def header(images: str, repeats: int) -> str:
    """Says when, where and how the numbers were taken.

    Args:
        images: the data set.
        repeats: rounds.

    Returns:
        Markdown.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    lines = [
        "# driftlab.sweep beside its peers",
        "",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} "
        f"at the start; JAX on {jax.default_backend()} ({devices})",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- data: {images}; digits for the small networks",
        f"- command: `python -m benchmarks.sweep {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        f"- every number is the median of {repeats} rounds in which each peer runs once",
    ]
    return "\n".join(lines)


def version(name: str) -> str:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(missing)"


def processor() -> str:
    """The processor's name with its family and model, which a cloud's name may hide."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.processor())} ({family})"
