"""What to offer somebody who misspelt a name."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence offering the known names nearest to a misspelt one.

    Args:
      name: what was asked for.
      known: what exists.

    Returns:
      "did you mean ...?", or the list of names where none is near.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
