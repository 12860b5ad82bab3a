"""Optimisers as optax `GradientTransformation`s."""

from driftlab.transforms.by_name import by_name, names, resolve
from driftlab.transforms.dal import ScaleByDalState, dal, scale_by_dal

__all__ = ["ScaleByDalState", "by_name", "dal", "names", "resolve", "scale_by_dal"]
