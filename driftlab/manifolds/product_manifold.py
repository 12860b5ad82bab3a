"""Products of manifolds within one array: coordinates that live on different ones."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.vectors import root


def product(manifolds: Sequence[Manifold], sizes: Sequence[int]) -> Manifold:
    """The product metric on the pieces of the last axis.

    `<u, v> = sum_i <u_i, v_i>`; every map acts piece by piece, `d^2 = sum_i d_i^2`. Each piece is
    a factor of its own. (Leaves of different manifolds in one tree need no product: a tree of
    parameters is one already.)

    Args:
      manifolds: of the pieces; of points with one axis, or none.
      sizes: their entries along the last axis.

    Returns:
      The manifold.

    Raises:
      ValueError: if the two differ in number, a size is not positive, or a point has more axes.
    """
    if len(manifolds) != len(sizes) or not manifolds or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)} must give a positive number of entries for each of the "
            f"{len(manifolds)} manifolds."
        )
    wide = [m.name for m in manifolds if m.point_ndim > 1]
    if wide:
        raise ValueError(f"a product splits the last axis; the points of {wide} have two or more.")
    cuts = [int(cut) for cut in np.cumsum(sizes)[:-1]]

    def pieces(x: Array) -> list[Array]:
        if x.shape[-1] != sum(sizes):
            raise ValueError(
                f"the last axis has {x.shape[-1]} entries; sizes={tuple(sizes)} make {sum(sizes)}."
            )
        return jnp.split(x, cuts, axis=-1)

    def each(name: str) -> Callable[..., Array]:
        def joined(*arrays: Array) -> Array:
            split = zip(manifolds, *map(pieces, arrays), strict=True)
            return jnp.concatenate([getattr(m, name)(*parts) for m, *parts in split], axis=-1)

        return joined

    def numbers(name: str, arrays: Sequence[Array]) -> list[Array]:
        found = []
        for m, *parts in zip(manifolds, *map(pieces, arrays), strict=True):
            value = getattr(m, name)(*parts)
            # Without a point axis each entry is a point.
            found.append(value[..., None] if m.point_ndim == 1 else value)
        return found

    def inner(x: Point, u: Tangent, v: Tangent) -> Float[Array, "..."]:
        return sum(jnp.sum(part, axis=-1) for part in numbers("inner", (x, u, v)))  # type: ignore

    def factor_inner(x: Point, u: Tangent, v: Tangent) -> Array:
        parts = numbers("inner", (x, u, v))
        wide = [
            jnp.broadcast_to(part, (*part.shape[:-1], size))
            for part, size in zip(parts, sizes, strict=True)
        ]
        return jnp.concatenate(wide, axis=-1)

    def distance(x: Point, y: Point) -> Float[Array, "..."]:
        parts = numbers("distance", (x, y))
        return root(sum((jnp.sum(part**2, axis=-1) for part in parts), jnp.zeros((), x.dtype)))

    def violation(x: Array) -> Float[Array, "..."]:
        worst = [jnp.max(part, axis=-1) for part in numbers("violation", (x,))]
        return jnp.max(jnp.stack(worst), axis=0)

    def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Point:
        keys = jax.random.split(key, len(manifolds))
        drawn = [
            m.random(k, (*shape[:-1], size), dtype)
            for m, k, size in zip(manifolds, keys, sizes, strict=True)
        ]
        return jnp.concatenate(drawn, axis=-1)

    inside = ", ".join(f"{m.name}: {size}" for m, size in zip(manifolds, sizes, strict=True))
    return Manifold(
        name=f"product({inside})",
        point_ndim=1,
        inner=inner,
        factor_inner=factor_inner,
        gradient=each("gradient"),
        tangent=each("tangent"),
        exp_update=each("exp_update"),
        retract_update=each("retract_update"),
        log=each("log"),
        distance=distance,
        parallel_transport=each("parallel_transport"),
        vector_transport=each("vector_transport"),
        project=each("project"),
        violation=violation,
        random=random,
        retraction_acceleration=each("retraction_acceleration"),
        retraction=", ".join(m.retraction for m in manifolds),
    )
