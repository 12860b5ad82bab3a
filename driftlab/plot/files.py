"""Figures on disk."""

import os
import threading
from pathlib import Path

from matplotlib.figure import Figure

from driftlab.plot.style import style

_DOTS_PER_INCH = 150


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as PNG, at once or not at all: under a temporary name, then renamed.

    Args:
      figure: the figure.
      path: the file, whose name ends in `.png`; its folder is created where there is none.

    Returns:
      The file's path.

    Raises:
      ValueError: if the name does not end in `.png`.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path {str(path)!r} must end in '.png'; figures are written as PNG.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with style():
            figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
