"""How the tests of experiments start a binary, and read flags without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run_experiment():
    """`run_experiment(name, *arguments)`: `python -m experiments.NAME`, from the repository's root.

    Its environment is a user's: one device, the terminal's width unknown; compiled programs are
    kept between runs of the tests.
    """

    def run(name, *arguments):
        kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
        kept["XDG_CACHE_HOME"] = f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"
        command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def parsed_flags():
    """The shared flags at their defaults, for what reads them outside a binary."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
