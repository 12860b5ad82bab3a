"""Small sweeps with known values."""

import numpy as np
import pytest
import xarray


def _make_sweep(values, verdict_step=None, axes=None, variable="loss", steps=None, attrs=None):
    """A sweep's dataset.

    Args:
      values: `(axes..., step)`; NaN from a verdict on is filled in here.
      verdict_step: over the axes, -1 for "ok"; all "ok" where not given.
      axes: axis name -> values, in the order of the dimensions.
      variable: the variable's name.
      steps: the recorded iterations; 0, 10, 20, ... where not given.
      attrs: the variable's attrs.
    """
    axes = {"learning_rate": [0.01, 0.1, 1.0], "seed": [0, 1]} if axes is None else axes
    values = np.array(values, float)
    steps = 10 * np.arange(values.shape[-1]) if steps is None else np.asarray(steps)
    dims = tuple(axes)
    verdict_step = np.full(values.shape[:-1], -1) if verdict_step is None else verdict_step
    verdict_step = np.asarray(verdict_step)
    values[(verdict_step >= 0)[..., None] & (steps >= verdict_step[..., None])] = np.nan
    verdict = np.where(verdict_step >= 0, "diverged", "ok")
    return xarray.Dataset(
        {
            variable: ((*dims, "step"), values, attrs or {}),
            "verdict": (dims, verdict),
            "verdict_step": (dims, verdict_step),
        },
        {**axes, "step": ("step", steps, {"long_name": "step", "units": "iterations"})},
    )


@pytest.fixture
def sweep(make_sweep):
    """Three learning rates, four seeds, five records: at 0.1 one seed diverges at iteration 25,
    at 1.0 three do, at 5, 15 and 25."""
    learning_rate = np.array([0.01, 0.1, 1.0])[:, None, None]
    seed = np.arange(4.0)[None, :, None]
    record = np.arange(5.0)[None, None, :]
    values = 10.0 ** (1 - learning_rate - record) * (1 + seed)
    verdict_step = [[-1] * 4, [-1, 25, -1, -1], [5, 15, 25, -1]]
    dataset = make_sweep(
        values,
        verdict_step,
        {"learning_rate": learning_rate.ravel(), "seed": np.arange(4)},
        attrs={"units": "nats", "long_name": "training loss"},
    )
    dataset.learning_rate.attrs.update(units="1", long_name="learning rate")
    return dataset


def _texts(legend):
    """A legend's entries."""
    return [text.get_text() for text in legend.get_texts()]


@pytest.fixture
def make_sweep():
    """Makes a sweep's dataset."""
    return _make_sweep


@pytest.fixture
def texts():
    """Lists a legend's entries."""
    return _texts
