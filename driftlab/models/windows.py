"""Sliding windows of images as strided slices, shared by convolutions and pooling."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

Pair = int | Sequence[int]


def as_pair(value: Pair, name: str) -> tuple[int, int]:
    """Turns one size, or a size for each of height and width, into a pair.

    Args:
        value: a positive integer or two of them.
        name: the argument's name, for the message.

    Returns:
        `(height, width)`.

    Raises:
        ValueError: not one or two positive integers.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f"{name}={value!r} must be a positive integer or a pair of them")
    return pair


def output_and_padding(
    size: int, window: int, stride: int, padding: str
) -> tuple[int, tuple[int, int]]:
    """Counts the positions of a window along one axis, and the padding that makes room for them.

    Args:
        size: length of the axis.
        window: length of the window.
        stride: distance between neighbouring positions.
        padding: `SAME` (`ceil(size / stride)` positions, the odd element of padding at the end) or
            `VALID` (no padding).

    Returns:
        The number of positions and the padding `(before, after)`.

    Raises:
        ValueError: another padding, or an axis shorter than the window.
    """
    if padding == "VALID":
        if size < window:
            raise ValueError(
                f"a window of {window} does not fit an axis of {size}; use padding='SAME' or "
                "larger images"
            )
        return (size - window) // stride + 1, (0, 0)
    if padding == "SAME":
        positions = -(-size // stride)
        total = max((positions - 1) * stride + window - size, 0)
        return positions, (total // 2, total - total // 2)
    raise ValueError(f"padding={padding!r} is not known; choose 'SAME' or 'VALID'")


def shifted_slices(
    inputs: Shaped[Array, "batch height width channels"],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
    fill: float = 0.0,
) -> list[Shaped[Array, "batch rows columns channels"]]:
    """Cuts out, for each offset inside the window, the elements that it meets at every position.

    Args:
        inputs: images, channels last.
        window: height and width of the window.
        strides: distance between positions.
        padding: `SAME` or `VALID`.
        fill: what the padding holds.

    Returns:
        `window[0] * window[1]` strided slices, offsets in row-major order.

    Raises:
        ValueError: see `output_and_padding`.
    """
    rows, row_padding = output_and_padding(inputs.shape[1], window[0], strides[0], padding)
    columns, column_padding = output_and_padding(inputs.shape[2], window[1], strides[1], padding)
    if any(row_padding + column_padding):
        margins = ((0, 0), row_padding, column_padding, (0, 0))
        inputs = jnp.pad(inputs, margins, constant_values=fill)
    batch, _, _, channels = inputs.shape
    return [
        lax.slice(
            inputs,
            (0, top, left, 0),
            (
                batch,
                top + (rows - 1) * strides[0] + 1,
                left + (columns - 1) * strides[1] + 1,
                channels,
            ),
            (1, *strides, 1),
        )
        for top in range(window[0])
        for left in range(window[1])
    ]
