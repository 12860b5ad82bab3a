"""What a run records: pure functions of a `Snapshot`.

A measure takes a `driftlab.Snapshot` and returns an array (recorded under the function's name) or
a dict of named arrays. To add one, write a function and hand it to `sweep(measures=[...])`; wrap
it in `every(measure, n)` to record it at every n-th record only.
"""

from driftlab.measures.evaluation import evaluation, training
from driftlab.measures.norms import (
    distance_from_initialization,
    effective_learning_rate,
    gradient_norm,
    parameter_norm,
    update_norm,
)
from driftlab.measures.recording import Measure, Tracker, every, initial_memory, record
from driftlab.measures.values import loss, objective_value

DEFAULT: tuple[Measure, ...] = (
    loss,
    gradient_norm,
    update_norm,
    parameter_norm,
    distance_from_initialization,
    effective_learning_rate,
)

__all__ = [
    "DEFAULT",
    "Measure",
    "Tracker",
    "distance_from_initialization",
    "effective_learning_rate",
    "evaluation",
    "every",
    "gradient_norm",
    "initial_memory",
    "loss",
    "objective_value",
    "parameter_norm",
    "record",
    "training",
    "update_norm",
]
