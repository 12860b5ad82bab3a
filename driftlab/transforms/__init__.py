"""Optimisers as optax `GradientTransformation`s."""

from driftlab.transforms.by_name import by_name, names, resolve

__all__ = ["by_name", "names", "resolve"]
