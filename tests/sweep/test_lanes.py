"""The compiled programs: what is in them, and what they cost each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Grid
from driftlab.sweep.lane import Schedule, lane_program
from driftlab.sweep.lanes import compile_chunks, hoist_constants
from driftlab.sweep.plan import lane_hparams

GRID = Grid({"learning_rate": [0.01, 0.02, 0.04, 0.08], "seed": 2})


def compiled_chunks(problems, width, devices, texts=None, monkeypatch=None):
    if texts is not None:
        compile_once = jax.stages.Lowered.compile

        def compile_and_keep(self, *args, **kwargs):
            compiled = compile_once(self, *args, **kwargs)
            texts.append((self.as_text(), compiled.as_text()))
            return compiled

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_keep)
    program = lane_program(problems.mlp, {}, problems.MEASURES, Schedule(4, 2), 1e3, 3)
    keys = GRID.lane_keys(jax.random.key(0))
    return compile_chunks(program, lane_hparams(GRID), keys, width, jax.devices()[:devices])


def test_hoisted_constants_become_arguments():
    data = np.arange(2000.0).reshape(40, 50) / 1e5
    more = jnp.linspace(-1.0, 0.0, 40)

    def function(x, y):
        return jax.lax.fori_loop(0, 3, lambda i, z: jnp.tanh(data @ y["a"] + more + z), x)

    x, y = jnp.zeros(40), {"a": jnp.ones(50)}
    constants, hoisted = hoist_constants(function, x, y)
    assert sorted(c.shape for c in constants) == [(40,), (40, 50)]
    np.testing.assert_array_equal(jax.jit(hoisted)(constants, x, y), jax.jit(function)(x, y))
    text = jax.jit(hoisted).lower(constants, x, y).as_text()
    assert "dense_resource" not in text
    assert len(text) < 5000
    shifted = [c + 1 for c in constants]
    assert not np.array_equal(hoisted(shifted, x, y), function(x, y))


@pytest.mark.parametrize("width", [1, 4])
def test_the_data_are_not_in_the_program_and_devices_do_not_talk(problems, monkeypatch, width):
    texts = []
    chunks = compiled_chunks(problems, width, 2, texts, monkeypatch)
    assert chunks.width == 2 * width
    assert chunks.call_bytes > 0
    assert len(texts) == 2  # initialize and advance
    for lowered, compiled in texts:
        for literal in re.findall(r"dense<\"?([^>]*)\"?> : tensor<([^>]*)>", lowered):
            assert "64x5" not in literal[1]
        assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", compiled)


def test_the_program_does_not_depend_on_the_values_of_the_data(problems, monkeypatch):
    # The persistent compilation cache finds a program again by its text.
    def text(offset):
        texts = []
        random_state = np.random.RandomState
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "RandomState", lambda seed: random_state(seed + offset))
            compiled_chunks(problems, 2, 1, texts, patch)
        return [lowered for lowered, _ in texts]

    assert text(0) == text(1)
