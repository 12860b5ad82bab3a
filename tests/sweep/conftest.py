"""The problems that the sweep's tests share, as a fixture (pytest runs in importlib mode)."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def problems():
    """The module `problems.py` beside this file."""
    spec = importlib.util.spec_from_file_location("sweep_problems", PROBLEMS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROBLEMS = Path(__file__).with_name("problems.py")
