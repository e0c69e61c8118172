"""Holes in an image, for inpainting: thick strokes with round ends, scratches to blobs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dossr_jax.data.degradation.presets import HoleOdds

# One stroke, drawn or not, for every square of this side, so that large images have more of them.
_SQUARE = 40
_DRAWS = 6


class Holes(NamedTuple):
    """Strokes (n,): from `start` to `end` (n, 2), as wide as twice `radius`, in pixels."""

    drawn: jax.Array  # bool
    start: jax.Array
    end: jax.Array
    radius: jax.Array


def draw_holes(key: jax.Array, odds: HoleOdds, shape: tuple[int, int]) -> Holes:
    """Draw the strokes of one image (h, w)."""
    count = max(1, math.ceil(shape[0] * shape[1] / _SQUARE**2))
    strokes, image = jax.random.split(key)
    drawn, row, column, angle, length, radius = jax.random.uniform(strokes, (_DRAWS, count))
    share, holed = jax.random.uniform(image, (2,))
    low, high = odds.share
    middle = jnp.stack([row * shape[0], column * shape[1]], axis=-1)
    direction = jnp.stack([jnp.sin(jnp.pi * angle), jnp.cos(jnp.pi * angle)], axis=-1)
    half = _between(odds.length, length)[:, None] / 2 * direction
    some = (drawn < low + share * (high - low)).at[0].set(True)
    return Holes(
        drawn=some & (holed < odds.odds),
        start=middle - half,
        end=middle + half,
        radius=_between(odds.radius, radius**2),  # thin ones are more frequent
    )


def hole_mask(holes: Holes, shape: tuple[int, int]) -> jax.Array:
    """Whether a pixel is missing, bool (h, w)."""
    row, column = (jnp.arange(side, dtype=jnp.float32) for side in shape)
    row, column = row[:, None], column[None]

    def add(i: jax.Array, mask: jax.Array) -> jax.Array:
        drawn, start, end, radius = (values[i] for values in holes)
        y, x = row - start[0], column - start[1]
        down, right = end - start
        reach = (y * down + x * right) / jnp.maximum(down**2 + right**2, 1e-6)
        reach = jnp.clip(reach, 0, 1)
        inside = (y - reach * down) ** 2 + (x - reach * right) ** 2 <= radius**2
        return mask | (drawn & inside)

    return jax.lax.fori_loop(0, len(holes.drawn), add, jnp.zeros(shape, bool))


def _between(bounds: tuple[jax.typing.ArrayLike, ...], draw: jax.Array) -> jax.Array:
    low, high = map(jnp.asarray, bounds)
    return low + draw * (high - low)
