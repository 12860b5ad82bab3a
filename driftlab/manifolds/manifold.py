"""What a manifold is here: functions on arrays of points."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Point = Float[Array, "..."]
Tangent = Float[Array, "..."]


@dataclasses.dataclass(frozen=True, eq=False)
class Manifold:
    """The geometry of an array of points, one after another along its leading axes.

    A point takes the last `point_ndim` axes; all leading ones count points. Tangent vectors have
    the shape of their points. Each point is a *factor* of the product manifold that the array
    stands for (a `product` has several a point), and adaptive methods keep one number a factor.
    Every function is pure, works under jit, vmap and grad, and keeps the points' dtype. First
    derivatives of maps are right where nothing moves (v = 0, y = x), second ones there are not.

    Attributes:
      name: for messages.
      point_ndim: axes of one point.
      inner: `(x, u, v) -> <u, v>_x`, one number a point.
      factor_inner: the same, one number a factor, in a shape that broadcasts against x.
      gradient: `(x, g) -> grad f(x)`, the Riemannian gradient from the array of partial
        derivatives, which is what `jax.grad` gives.
      tangent: `(x, u) ->` the orthogonal projection of any u onto the tangent space.
      exp_update: `(x, v) -> exp_x(v) - x`, what `optax.apply_updates` adds; without the
        cancellation of a difference.
      retract_update: `(x, v) -> R_x(v) - x`, likewise, of the cheaper retraction.
      log: `(x, y) -> v` with `exp_x(v) = y`, the shortest.
      distance: `(x, y) ->` the geodesic distance, one number a point.
      parallel_transport: `(x, y, v) ->` v at y, along the shortest geodesic from x; an isometry.
      vector_transport: `(x, y, v) ->` v at y; parallel where that is known in closed form, else
        the projection onto the tangent space at y.
      project: any array to the manifold: the nearest point where that has a meaning.
      violation: `x ->` how far a point is from lying on the manifold, relative to what rounding
        explains: above 1 it does not. One number a point.
      random: `(key, shape, dtype) ->` points.
      retraction_acceleration: `(x, v) ->` the covariant acceleration of `t -> R_x(t v)` at 0: how
        the retraction leaves the geodesic, 0 for one of second order.
      retraction: what the retraction is called.
    """

    name: str
    point_ndim: int
    inner: Callable[[Point, Tangent, Tangent], Float[Array, "..."]]
    factor_inner: Callable[[Point, Tangent, Tangent], Float[Array, "..."]]
    gradient: Callable[[Point, Array], Tangent]
    tangent: Callable[[Point, Array], Tangent]
    exp_update: Callable[[Point, Tangent], Array]
    retract_update: Callable[[Point, Tangent], Array]
    log: Callable[[Point, Point], Tangent]
    distance: Callable[[Point, Point], Float[Array, "..."]]
    parallel_transport: Callable[[Point, Point, Tangent], Tangent]
    vector_transport: Callable[[Point, Point, Tangent], Tangent]
    project: Callable[[Array], Point]
    violation: Callable[[Array], Float[Array, "..."]]
    random: Callable[[PRNGKeyArray, tuple[int, ...], jnp.dtype], Point]
    retraction_acceleration: Callable[[Point, Tangent], Tangent]
    retraction: str

    def exp(self, x: Point, v: Tangent) -> Point:
        """The end of the geodesic that leaves x with velocity v, at time 1.

        Args:
          x: points.
          v: tangent vectors there.

        Returns:
          Points.
        """
        return x + self.exp_update(x, v)

    def retract(self, x: Point, v: Tangent) -> Point:
        """The retraction `R_x(v) = x + v + O(|v|^2)`.

        Args:
          x: points.
          v: tangent vectors there.

        Returns:
          Points.
        """
        return x + self.retract_update(x, v)

    def norm(self, x: Point, v: Tangent) -> Float[Array, "..."]:
        """The length of tangent vectors, `sqrt(<v, v>_x)`; its derivative at 0 is 0.

        Args:
          x: points.
          v: tangent vectors there.

        Returns:
          One number a point.
        """
        square = self.inner(x, v, v)
        positive = square > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0 * square)

    def contains(self, x: Array) -> Bool[Array, "..."]:
        """Whether points lie on the manifold, up to rounding.

        Args:
          x: an array.

        Returns:
          One answer a point; False for NaN.
        """
        return self.violation(x) <= 1

    def __repr__(self) -> str:
        return self.name
