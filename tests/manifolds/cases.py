"""Every manifold, with a shape of its points and how its geodesics can be told from other curves.

`metric` is "chart" where tangent vectors are all vectors of the array (an open set), "embedded"
where the metric is that of the space around, "canonical" for Stiefel's other metric.
"""

from typing import NamedTuple

from driftlab import manifolds
from driftlab.manifolds import Manifold


class Case(NamedTuple):
    name: str
    manifold: Manifold
    shape: tuple[int, ...]
    metric: str
    # Of the distance between the retraction and the exponential map at t v, as t goes to 0.
    retraction_order: float
    # How many digits a point a unit or two from the centre loses: 1 but for the hyperboloid.
    loss: float = 1.0


BALL, SPHERE = manifolds.poincare_ball(), manifolds.sphere()

CASES = [
    Case("euclidean", manifolds.euclidean(), (5, 3), "chart", float("inf")),
    Case("euclidean rows", manifolds.euclidean(1), (5, 3), "chart", float("inf")),
    Case("ball", BALL, (5, 3), "chart", 2),
    Case("ball -0.4", manifolds.poincare_ball(-0.4), (5, 2), "chart", 2),
    Case("hyperboloid", manifolds.hyperboloid(), (5, 4), "embedded", 2, 100),
    Case("hyperboloid -2.5", manifolds.hyperboloid(-2.5), (5, 3), "embedded", 2, 100),
    Case("sphere", SPHERE, (5, 4), "embedded", 3),
    Case("oblique", manifolds.oblique(), (5, 4, 3), "embedded", 3),
    Case(
        "product",
        manifolds.product([BALL, SPHERE, manifolds.euclidean()], [2, 3, 2]),
        (5, 7),
        "mixed",
        2,
    ),
    Case("stiefel qf", manifolds.stiefel(), (5, 6, 3), "embedded", 2),
    Case("stiefel polar", manifolds.stiefel(retraction="polar"), (5, 6, 3), "embedded", 3),
    Case("stiefel cayley", manifolds.stiefel(retraction="cayley"), (5, 4, 2), "embedded", 2),
    Case("canonical qf", manifolds.stiefel("canonical"), (5, 6, 3), "canonical", 2),
    Case("canonical polar", manifolds.stiefel("canonical", "polar"), (5, 4, 2), "canonical", 2),
    Case("canonical cayley", manifolds.stiefel("canonical", "cayley"), (5, 6, 3), "canonical", 3),
]

# Those whose logarithm, distance and parallel transport are known in closed form.
CLOSED = [case for case in CASES if not case.manifold.name.startswith("stiefel")]
