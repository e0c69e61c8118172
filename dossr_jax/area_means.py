"""Mean colours that stay: areas of a result are on average what they are in the input.

As in dossr_jax.image, an image occupies the top-left part of its canvas, `size` (b, 2), and what
lies outside, NaN included, has no influence inside. Areas are AREA pixels of the result wide, from
the top-left corner on; those at the right and lower border may be smaller.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from dossr_jax.config import AREA
from dossr_jax.image import Image, Sizes, coarse_fix, cubic_weights, valid_part

# What is left alone, of 1: rounding to 8 bits moves a flat area by half a level of 255 at most.
_TOLERANCE = 0.25 / 255
_ROUNDS = 8
# The mean over its own area of a correction that is 1 in one area is 0.7, 0.84 along each axis.
_STEP = 1.4


class _Axis(NamedTuple):
    """The areas along one axis, weights (b, areas, length).

    mean: of the average over an area. smooth: of an interpolation between the areas' centres.
    """

    mean: Array
    smooth: Array


def keep_area_means(
    image: Image, lr: Float[Array, "b lr_h lr_w c"], size: Sizes
) -> Float[Array, "b h w c"]:
    """`image` in [0, 1], with the mean colours of `lr` in all areas to a quarter of a level of 255.

    Smooth corrections are added, so that detail stays and the noise of `lr` does not return. Where
    they do not suffice, because an area is black or white in part or next to one of another colour,
    its pixels move towards black or white by one share of their distance, which always suffices.

    Args:
      image: (b, k lr_h, k lr_w, c) for k 1, 2 or 4, about [0, 1], float32 or float64.
      lr: (b, lr_h, lr_w, c) in [0, 1]. size: valid part of every `lr`, int32 (b, 2).

    Returns:
      (b, k lr_h, k lr_w, c), meaningful in the valid part only.
    """
    scale = image.shape[1] // lr.shape[1]
    lr = _valid(lr.astype(image.dtype), size)
    wanted = _means(lr, _axes(lr, size, AREA // scale))
    axes = _axes(image, scale * size, AREA)
    # It knows no areas: between them, too, colours stay about what they were.
    image = _valid(coarse_fix(image, lr, size), scale * size)

    def corrected(correction: Array) -> Array:
        rows, cols = axes
        smooth = _contract("bmw,bnmc->bnwc", cols.smooth, correction)
        return jnp.clip(image + _contract("bnh,bnwc->bhwc", rows.smooth, smooth), 0, 1)

    def lacking(means: Array) -> Array:
        lack = wanted - means
        return lack - jnp.clip(lack, -_TOLERANCE, _TOLERANCE)

    def improve(_: Array, correction: Array) -> Array:
        x = corrected(correction)
        lack = lacking(_means(x, axes))
        # Pushing on where nearly all pixels are black or white already would spoil the neighbours.
        up, down = (_means(free.astype(x.dtype), axes) for free in (x < 1, x > 0))
        return correction + _STEP * lack * jnp.minimum(1, 4 * jnp.where(lack > 0, up, down))

    x = corrected(jax.lax.fori_loop(0, _ROUNDS, improve, jnp.zeros_like(wanted)))
    means = _means(x, axes)
    lack = lacking(means)
    # Of the distance to white or to black; no area lacks more than that.
    share = lack / jnp.maximum(jnp.where(lack > 0, 1 - means, means), _TOLERANCE)
    share = _each_pixel(share, AREA, *x.shape[1:3])
    return x + share * jnp.where(share > 0, 1 - x, x)


def _axes(image: Array, size: Array, area: int) -> tuple[_Axis, _Axis]:
    rows, cols = (_axis(image.shape[i + 1], size[:, i], area, image.dtype) for i in (0, 1))
    return rows, cols


def _axis(length: int, valid: Array, area: int, dtype: DTypeLike) -> _Axis:
    """An axis of `length` pixels, the first `valid` (b,) of them part of the image."""
    count = -(-length // area)
    areas = jnp.arange(count, dtype=jnp.int32)[None, :, None]
    here = jnp.arange(length, dtype=jnp.int32)[None, None, :]
    valid = valid[:, None, None]
    pixels = jnp.clip(valid - area * areas, 0, area)
    inside = (here // area == areas) & (here < valid)
    mean = inside.astype(dtype) / jnp.maximum(pixels, 1).astype(dtype)

    # Where a pixel lies between the centres of areas, in areas. The last one may be smaller.
    last = (valid - 1) // area
    short = (valid - area * last).astype(dtype)
    position = here.astype(dtype)
    last = last.astype(dtype)
    before = area * (last - 0.5) - 0.5  # the centre of the last area but one
    at = jnp.where(
        position > before,
        last - 1 + (position - before) * 2 / (area + short),
        (position + 0.5) / area - 0.5,
    )
    at = jnp.clip(at, 0, last)
    # No edge shows. Beyond the ends areas repeat.
    first = jnp.floor(at)
    smooth = sum(
        jnp.where(jnp.clip(first + i - 1, 0, last) == areas.astype(dtype), weight, 0)
        for i, weight in enumerate(cubic_weights(at - first))
    )
    return _Axis(mean, jnp.asarray(smooth))


def _valid(x: Array, size: Array) -> Array:
    """x (b, h, w, c) with zeros outside the valid part."""
    return jnp.where(valid_part(x, size), x, 0)


def _means(x: Array, axes: tuple[_Axis, _Axis]) -> Array:
    """Of the areas of x (b, h, w, c): (b, rows, columns, c)."""
    rows, cols = axes
    return _contract("bmw,bnwc->bnmc", cols.mean, _contract("bnh,bhwc->bnwc", rows.mean, x))


def _contract(subscripts: str, weights: Array, x: Array) -> Array:
    return jnp.einsum(subscripts, weights, x, precision=jax.lax.Precision.HIGHEST)


def _each_pixel(x: Array, area: int, height: int, width: int) -> Array:
    """Values of areas (b, rows, columns, c) as those of all of their pixels."""
    for axis, length in ((1, height), (2, width)):
        x = jnp.take(x, jnp.arange(length, dtype=jnp.int32) // area, axis=axis)
    return x
