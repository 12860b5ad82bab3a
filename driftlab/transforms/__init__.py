"""Optimisers as optax `GradientTransformation`s."""

from driftlab.transforms.by_name import by_name, names, resolve
from driftlab.transforms.dal import ScaleByDalState, dal, scale_by_dal
from driftlab.transforms.parameter_average import ParameterAverageState, average_parameters
from driftlab.transforms.riemannian import (
    ScaleByRiemannianAdagradState,
    ScaleByRiemannianAdamState,
    riemannian_adagrad,
    riemannian_adam,
    riemannian_amsgrad,
    riemannian_sgd,
    scale_by_riemannian_adagrad,
    scale_by_riemannian_adam,
)
from driftlab.transforms.riemannian_steps import (
    RiemannianTraceState,
    clip_by_riemannian_norm,
    retract,
    riemannian_gradient,
    riemannian_trace,
)
from driftlab.transforms.rows import RowOptimizer, RowState, by_row

__all__ = [
    "ParameterAverageState",
    "RiemannianTraceState",
    "RowOptimizer",
    "RowState",
    "ScaleByDalState",
    "ScaleByRiemannianAdagradState",
    "ScaleByRiemannianAdamState",
    "average_parameters",
    "by_name",
    "by_row",
    "clip_by_riemannian_norm",
    "dal",
    "names",
    "resolve",
    "retract",
    "riemannian_adagrad",
    "riemannian_adam",
    "riemannian_amsgrad",
    "riemannian_gradient",
    "riemannian_sgd",
    "riemannian_trace",
    "scale_by_dal",
    "scale_by_riemannian_adagrad",
    "scale_by_riemannian_adam",
]
