"""Optimisers as optax `GradientTransformation`s."""

from driftlab.transforms.a2grad import A2GradState, a2grad
from driftlab.transforms.by_name import by_name, names, resolve
from driftlab.transforms.dal import ScaleByDalState, dal, scale_by_dal
from driftlab.transforms.deep_linear import (
    DeepLinearDescentState,
    deep_linear_descent,
    risk_smoothness,
)
from driftlab.transforms.fluctuation_dissipation_schedule import (
    fluctuation_dissipation_sgd,
    lower_at_stationarity,
)
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
from driftlab.transforms.sasa import sasa

__all__ = [
    "A2GradState",
    "DeepLinearDescentState",
    "ParameterAverageState",
    "RiemannianTraceState",
    "RowOptimizer",
    "RowState",
    "ScaleByDalState",
    "ScaleByRiemannianAdagradState",
    "ScaleByRiemannianAdamState",
    "a2grad",
    "average_parameters",
    "by_name",
    "by_row",
    "clip_by_riemannian_norm",
    "dal",
    "deep_linear_descent",
    "fluctuation_dissipation_sgd",
    "lower_at_stationarity",
    "names",
    "resolve",
    "retract",
    "riemannian_adagrad",
    "riemannian_adam",
    "riemannian_amsgrad",
    "riemannian_gradient",
    "riemannian_sgd",
    "riemannian_trace",
    "risk_smoothness",
    "sasa",
    "scale_by_dal",
    "scale_by_riemannian_adagrad",
    "scale_by_riemannian_adam",
]
