"""JPEG with 4:2:0 chroma as arithmetic on a fixed canvas, without the entropy coding.

Colour transform, mean of 2x2 chroma pixels, cosine transform of 8x8 blocks, division by the scaled
standard tables, rounding, and back. Tables are scaled as libjpeg does, but neither rounded nor
clamped, and the input is not rounded to 8 bit, both as in Real-ESRGAN's differentiable JPEG.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# ITU-T T.81, annex K, but turned over: Real-ESRGAN applies the luma table with its axes exchanged
# (rows are horizontal frequencies in the standard), and so do the models trained with it.
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
).T
CHROMA_TABLE = np.full((8, 8), 99, np.float32)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF, rows Y, Cb, Cr; the offset of 128 is left out, since the transform takes it away again.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def _basis(repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """From flattened pixels of a block to 64 coefficients, (64, n), and back, (n, 64).

    Cosine transform of 8x8, where a pixel is the mean of `repeat` squared pixels of the block.
    """
    k, i = np.arange(8)[:, None], np.arange(8)[None]
    cosines = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos(np.pi * (2 * i + 1) * k / 16)
    forward = np.repeat(cosines, repeat, axis=1) / repeat
    backward = repeat * forward.T
    return tuple(np.kron(m, m).astype(np.float32) for m in (forward, backward))


_LUMA_BASIS, _CHROMA_BASIS = _basis(1), _basis(2)


def jpeg(image: jax.Array, valid: jax.Array, quality: jax.Array) -> jax.Array:
    """What a JPEG of the given quality makes of an image.

    Args:
      image: (3, h, w) float32 in [0, 1], of which [:, :valid[0], :valid[1]] is image. Blocks on
        its edge are filled up with black, as in Real-ESRGAN.
      valid: (2,) int32.
      quality: from above 0 to 100, as libjpeg counts.

    Returns:
      (3, h, w) float32 in [0, 1]; outside `valid` the values mean nothing.
    """
    height, width = image.shape[1:]
    inside = (jnp.arange(height) < valid[0])[:, None] & (jnp.arange(width) < valid[1])[None]
    black = jnp.where(inside[None], image, 0.0)
    black = jnp.pad(black, ((0, 0), (0, -height % 16), (0, -width % 16)))
    planes = [sum(255 * m * black[c] for c, m in enumerate(row)) for row in _TO_YCC]
    factor = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    ycc = [
        _quantised(planes[0] - 128, LUMA_TABLE * factor, _LUMA_BASIS) + 128,
        *(_quantised(plane, CHROMA_TABLE * factor, _CHROMA_BASIS) for plane in planes[1:]),
    ]
    rgb = jnp.stack([sum(m * ycc[c] for c, m in enumerate(row) if m) for row in _TO_RGB])
    return jnp.clip(rgb[:, :height, :width] / 255, 0, 1)


def _quantised(
    plane: jax.Array, table: jax.Array, basis: tuple[np.ndarray, np.ndarray]
) -> jax.Array:
    """A plane (h, w) whose coefficients are rounded to multiples of the table (8, 8)."""
    forward, backward = basis
    height, width = plane.shape
    side = math.isqrt(len(backward))
    blocks = plane.reshape(height // side, side, width // side, side).transpose(0, 2, 1, 3)
    steps = table.reshape(1, 64)
    # Float32 throughout: accelerators would round the factors otherwise.
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    coefficients = product(blocks.reshape(-1, side * side), forward.T)
    blocks = product(jnp.round(coefficients / steps) * steps, backward.T)
    blocks = blocks.reshape(height // side, width // side, side, side).transpose(0, 2, 1, 3)
    return blocks.reshape(height, width)
