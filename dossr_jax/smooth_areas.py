"""Gradients that stay: where an image of 16 bits has no detail, its levels are interpolated.

As in dossr_jax.image, an image occupies the top-left part of its canvas, `size` (b, 2). Networks
err by about a level of 255, which nobody sees, but which is 257 levels of 16 bits: a gradient would
come back in steps that go up and down.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dossr_jax.image import Image, Sizes, cubic_weights, valid_part

# Second differences that count as detail, from none of it to all of it.
_DETAIL = (0.5 / 255, 1 / 255)
# Pixels of the result between the samples of a difference, and around detail that are left to the
# networks.
_STEP, _REACH = 4, 8


def keep_smooth_areas(
    image: Image, lr: Float[Array, "b lr_h lr_w c"], size: Sizes
) -> Float[Array, "b h w c"]:
    """`image`, or `lr` by cubic interpolation where its second differences are below a level.

    Args:
      image: (b, k lr_h, k lr_w, c) for any k, about [0, 1].
      lr: (b, lr_h, lr_w, c) in [0, 1]. size: valid part of every `lr`, int32 (b, 2).

    Returns:
      (b, k lr_h, k lr_w, c), meaningful in the valid part only.
    """
    scale = image.shape[1] // lr.shape[1]
    step, reach = max(1, _STEP // scale), max(1, _REACH // scale)
    detail = jnp.zeros((*lr.shape[:3], 1), lr.dtype)
    for axis in (1, 2):
        here = jnp.arange(lr.shape[axis], dtype=jnp.int32)
        before, after = _take(lr, size, here - step, axis), _take(lr, size, here + step, axis)
        second = before + after - 2 * lr
        detail = jnp.maximum(detail, jnp.max(jnp.abs(second), axis=-1, keepdims=True))
    low, high = _DETAIL
    share = jnp.where(valid_part(lr, size), jnp.clip((detail - low) / (high - low), 0, 1), 0)
    window = (1, 2 * reach + 1, 2 * reach + 1, 1)
    share = jax.lax.reduce_window(share, 0.0, jax.lax.max, window, (1, 1, 1, 1), "SAME")
    smooth = lr
    for axis in (1, 2):
        here = (jnp.arange(scale * lr.shape[axis]) + 0.5) / scale - 0.5
        first = jnp.floor(here).astype(jnp.int32)
        t = (here - first).astype(lr.dtype)
        smooth = _interpolate(smooth, size, first - 1, cubic_weights(t), axis)
        share = _interpolate(share, size, first, (1 - t, t), axis)
    return share * image + (1 - share) * smooth


def _interpolate(x: Array, size: Array, first: Array, weights: Sequence[Array], axis: int) -> Array:
    """The sum of samples from `first` on along an axis, each with its weight."""
    shape = [1] * x.ndim
    shape[axis] = -1
    terms = (
        _take(x, size, first + i, axis) * weight.reshape(shape) for i, weight in enumerate(weights)
    )
    return jnp.sum(jnp.stack(list(terms)), axis=0)


def _take(x: Array, size: Array, index: Array, axis: int) -> Array:
    """Samples of the valid part along an axis; beyond its ends, a ramp goes on as one."""

    def of_image(x: Array, length: Array) -> Array:
        last = length - 1
        inside = jnp.clip(index, 0, last)
        mirrored = jnp.clip(2 * inside - index, 0, last)
        ends = jnp.take(x, inside, axis=axis - 1, mode="clip")
        return 2 * ends - jnp.take(x, mirrored, axis=axis - 1, mode="clip")

    return jax.vmap(of_image)(x, size[:, axis - 1])
