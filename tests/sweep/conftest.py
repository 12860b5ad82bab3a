"""What the sweep's tests share, as fixtures (pytest runs in importlib mode)."""

import importlib.util
import os
from pathlib import Path

import pytest

from driftlab.sweep import engine


@pytest.fixture(scope="session")
def problems():
    """The module `problems.py` beside this file."""
    path = Path(__file__).with_name("problems.py")
    spec = importlib.util.spec_from_file_location("sweep_problems", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def signal_at(monkeypatch):
    """`signal_at(number, segment)`: segments are one record long; one of them meets a signal.

    Returns the list that counts the segments.
    """

    def arm(number, segment):
        advance, calls = engine.Fleet.advance, []

        def counted(fleet, first, count):
            calls.append(first)
            if len(calls) == segment:
                os.kill(os.getpid(), number)
            return advance(fleet, first, count)

        monkeypatch.setattr(engine, "_SEGMENT_SECONDS", 0.0)
        monkeypatch.setattr(engine.Fleet, "advance", counted)
        return calls

    return arm
