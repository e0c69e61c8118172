"""JPEG with 4:2:0 chroma as arithmetic on a fixed canvas, without the entropy coding.

Colour transform, mean of 2x2 chroma pixels, cosine transform of 8x8 blocks, division by the scaled
standard tables, rounding, and back. Tables are scaled as libjpeg does, but neither rounded nor
clamped, and the input is not rounded to 8 bit, both as in Real-ESRGAN's differentiable JPEG.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dossr_jax.data.degradation.arithmetic import add_up, product

# ITU-T T.81, annex K, but transposed: Real-ESRGAN exchanges the axes of the luma table (rows are
# horizontal frequencies in the standard), and so do the models trained with it.
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
# Columns are transformed this many at once, by one product with a block-diagonal matrix, wide
# enough for products to be fast; canvases are padded to multiples of it.
_GROUP = 32


def _cosines(repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """From the pixels of a block's line to 8 coefficients, (8, n), and back, (n, 8).

    Cosine transform of 8 values, where a value is the mean of `repeat` pixels.
    """
    k, i = np.arange(8)[:, None], np.arange(8)[None]
    cosines = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos(np.pi * (2 * i + 1) * k / 16)
    forward = np.repeat(cosines, repeat, axis=1) / repeat
    return forward.astype(np.float32), (repeat * forward.T).astype(np.float32)


def jpeg(image: jax.Array, valid: jax.Array, quality: jax.Array) -> jax.Array:
    """An image, compressed as JPEG at a quality and decoded.

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
    black = jnp.pad(black, ((0, 0), (0, -height % 16), (0, -width % _GROUP)))
    planes = [add_up(255 * m * black[c] for c, m in enumerate(row)) for row in _TO_YCC]
    factor = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    ycc = [
        _quantised(planes[0] - 128, LUMA_TABLE * factor, repeat=1) + 128,
        *(_quantised(plane, CHROMA_TABLE * factor, repeat=2) for plane in planes[1:]),
    ]
    rgb = jnp.stack([add_up(m * ycc[c] for c, m in enumerate(row) if m) for row in _TO_RGB])
    return jnp.clip(rgb[:, :height, :width] / 255, 0, 1)


def _quantised(plane: jax.Array, table: jax.Array | np.ndarray, *, repeat: int) -> jax.Array:
    """A plane (h, w) with its coefficients rounded to multiples of the table (8, 8).

    Each of the 8x8 values of a block is the mean of `repeat` x `repeat` pixels.
    """
    forward, backward = _cosines(repeat)
    coefficients = _transform_columns(forward, _transform_rows(forward, plane))
    height, width = coefficients.shape
    blocks = coefficients.reshape(height // 8, 8, width)
    steps = jnp.tile(table, (1, width // 8))[None]
    blocks = jnp.round(blocks / steps) * steps
    return _transform_rows(backward, _transform_columns(backward, blocks.reshape(height, width)))


def _transform_rows(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Every n rows of (h, w) to as many combinations of them as the matrix (m, n) has."""
    outputs, inputs = matrix.shape
    height, width = x.shape
    blocks = x.reshape(height // inputs, inputs, width)
    # A sum rather than a product: XLA would turn the blocks over before and after that.
    rows = jnp.asarray(matrix)
    blocks = add_up(rows[None, :, i, None] * blocks[:, i : i + 1] for i in range(inputs))
    return blocks.reshape(height // inputs * outputs, width)


def _transform_columns(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """As `_transform_rows`, of every n columns."""
    outputs, inputs = matrix.shape
    height, width = x.shape
    count = _GROUP // max(outputs, inputs)
    blocks = x.reshape(-1, count * inputs)
    blocks = product("ri,io->ro", blocks, np.kron(np.eye(count, dtype=np.float32), matrix).T)
    return blocks.reshape(height, width // inputs * outputs)
