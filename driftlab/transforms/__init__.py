"""Optimisers as optax `GradientTransformation`s."""

from driftlab.transforms.by_name import by_name, names, resolve
from driftlab.transforms.dal import ScaleByDalState, dal, scale_by_dal
from driftlab.transforms.parameter_average import ParameterAverageState, average_parameters

__all__ = [
    "ParameterAverageState",
    "ScaleByDalState",
    "average_parameters",
    "by_name",
    "dal",
    "names",
    "resolve",
    "scale_by_dal",
]
