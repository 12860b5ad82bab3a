"""Geometry for parameters that live on a manifold: exponential maps, transports, retractions.

A `Manifold` is a set of pure functions on an array of points; a tree of parameters names one a
leaf (see `assign`), and is Euclidean where it names none.
"""

from driftlab.manifolds.ball import ball_proximity, poincare_ball
from driftlab.manifolds.euclidean_space import euclidean
from driftlab.manifolds.lorentz_hyperboloid import (
    ball_to_hyperboloid,
    hyperboloid,
    hyperboloid_to_ball,
)
from driftlab.manifolds.manifold import Manifold
from driftlab.manifolds.product_manifold import product
from driftlab.manifolds.stiefel_manifold import stiefel
from driftlab.manifolds.trees import Manifolds, assign, check_points, gradient, inner
from driftlab.manifolds.unit_sphere import oblique, sphere

__all__ = [
    "Manifold",
    "Manifolds",
    "assign",
    "ball_proximity",
    "ball_to_hyperboloid",
    "check_points",
    "euclidean",
    "gradient",
    "hyperboloid",
    "hyperboloid_to_ball",
    "inner",
    "oblique",
    "poincare_ball",
    "product",
    "sphere",
    "stiefel",
]
