"""Strict numerics for every test: 64 bits, no silent rank promotion, a shared compilation cache."""

import os
import tempfile
from pathlib import Path

# Before JAX starts: two CPU devices, so that sharding is tested for real.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

_CACHE = Path(tempfile.gettempdir()) / f"driftlab-test-cache-{os.getuid()}"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def float32():
    """Runs a test in JAX's default precision."""
    with jax.enable_x64(False):
        yield
