"""Filtering each image with its own kernel, reflecting at a traced border.

Two programs give the same result. `correlate_separable`, for CPUs, passes over columns and rows as
often as a kernel needs: once for half of them. `correlate_tiles`, for accelerators, multiplies by a
constant matrix, which is fast there and takes equally long for every kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dossr_jax.data.degradation.arithmetic import add_up, product

Correlate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Largest error of `correlate_separable` on an image in [0, 1]: a 400th of an 8-bit level.
_LEFT_OUT = 1e-5

_SHARPEN_SIDE = 51
_SHARPEN_SIGMA = 8.0


def correlate_separable(image: jax.Array, valid: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlation with a kernel, the border reflected without repeating its pixels.

    The singular vectors of a kernel are columns and rows whose products add up to it; as many are
    used as keep the error below 1e-5. Isotropic Gaussians need one, most others up to seven.

    Args:
      image: (c, h, w) float32, of which [:, :valid[0], :valid[1]] is image.
      valid: (2,) int32.
      kernel: (k, k) float32, k odd.

    Returns:
      (c, h, w) float32; outside `valid` the values mean nothing.
    """
    height, width = image.shape[1:]
    side = kernel.shape[0]
    x = _bordered(image, valid, side // 2)
    columns, singular, rows = jnp.linalg.svd(kernel)
    columns = columns.T * singular[:, None]
    reach = jnp.sum(jnp.abs(columns), axis=1) * jnp.sum(jnp.abs(rows), axis=1)
    rest = jnp.cumsum(reach[::-1])[::-1]  # what the terms from each on can contribute
    terms = jnp.maximum(jnp.sum((rest > _LEFT_OUT).astype(jnp.int32)), 1)

    # XLA stores the columns' sums instead of computing them again for each of a row's: it does
    # so where they are used more than 15 times, and a row has 21 weights.
    def add(term: jax.Array, total: jax.Array) -> jax.Array:
        down = add_up(columns[term, i] * x[:, i : i + height] for i in range(side))
        return total + add_up(rows[term, i] * down[:, :, i : i + width] for i in range(side))

    return lax.fori_loop(0, terms, add, jnp.zeros_like(image))


def _bordered(image: jax.Array, valid: jax.Array, reach: int) -> jax.Array:
    """The image (c, h + 2 reach, w + 2 reach) with `reach` reflected pixels on each side."""
    x = image[:, _reflected(np.arange(-reach, image.shape[1] + reach), valid[0])]
    # Columns are slow to gather: only those past the edges are.
    before = x[:, :, _reflected(np.arange(-reach, 0), valid[1])]
    after = x[:, :, _reflected(valid[1] + np.arange(reach), valid[1])]
    x = jnp.concatenate([before, x, jnp.zeros_like(after)], axis=2)
    return lax.dynamic_update_slice_in_dim(x, after, valid[1] + reach, axis=2)


def correlate_tiles(image: jax.Array, valid: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `correlate_separable`, by Hartley transforms of overlapping tiles as matrix products.

    With H[f, i] = cas(2 pi f i / n), cas = cos + sin, a shift by o turns a transform X[f] into
    cos(2 pi f o / n) X[f] - sin(2 pi f o / n) X[-f], so a correlation is four products of X and
    its reversals with sums over the kernel.
    """
    reach = kernel.shape[0] // 2
    side = 64 if reach <= 10 else 128
    kept = side - 2 * reach
    channels, height, width = image.shape
    i = np.arange(side)
    turns = 2 * np.pi / side * np.outer(i, i)
    forward = (np.cos(turns) + np.sin(turns)).astype(np.float32)
    inverse = forward[reach : reach + kept] / side
    phase = 2 * np.pi / side * np.outer(i, np.arange(-reach, reach + 1))
    parts = np.cos(phase).astype(np.float32), np.sin(phase).astype(np.float32)

    def tiles(axis: int) -> tuple[jax.Array, int]:
        count = -(-image.shape[1 + axis] // kept)
        starts = kept * np.arange(count) - reach
        return _reflected((starts[:, None] + i[None]).ravel(), valid[axis]), count

    (rows, down), (columns, across) = tiles(0), tiles(1)
    x = image[:, rows].reshape(channels, down, side, width)
    x = product("fi,cyiw->cyfw", forward, x)
    x = x[..., columns].reshape(channels, down, side, across, side)
    x = product("cyfxj,gj->cyfxg", x, forward)

    def response(row_part: np.ndarray, column_part: np.ndarray) -> jax.Array:
        return product("fo,op,gp->fg", row_part, kernel, column_part)[None, None, :, None, :]

    cos, sin = parts
    back = (-i) % side
    row_back = x[:, :, back]
    x = (
        response(cos, cos) * x
        - response(sin, cos) * row_back
        - response(cos, sin) * x[..., back]
        + response(sin, sin) * row_back[..., back]
    )
    x = product("cyfxg,jg->cyfxj", x, inverse).reshape(channels, down, side, across * kept)
    x = product("if,cyfw->cyiw", inverse, x).reshape(channels, down * kept, across * kept)
    return x[:, :height, :width]


def sharpen(image: jax.Array, valid: jax.Array, correlate: Correlate) -> jax.Array:
    """Unsharp masking as in Real-ESRGAN: where the detail is above 10 levels, half of it is added.

    Args:
      image: (c, h, w) float32 in [0, 1], of which [:, :valid[0], :valid[1]] is image.
      valid: (2,) int32.
      correlate: one of the two above.

    Returns:
      (c, h, w) float32 in [0, 1].
    """
    offsets = np.arange(_SHARPEN_SIDE) - _SHARPEN_SIDE // 2
    window = np.exp(-0.5 * (offsets / _SHARPEN_SIGMA) ** 2)
    kernel = np.outer(window, window) / window.sum() ** 2
    kernel = jnp.asarray(kernel, jnp.float32)
    detail = image - correlate(image, valid, kernel)
    mask = correlate((jnp.abs(detail) * 255 > 10).astype(jnp.float32), valid, kernel)
    return image + mask * (jnp.clip(image + 0.5 * detail, 0, 1) - image)


def _reflected(index: np.ndarray | jax.Array, size: jax.Array) -> jax.Array:
    """Where an index of a reflected axis lies inside it, for any index and any size from 1."""
    period = jnp.maximum(2 * (size - 1), 1)
    i = jnp.mod(index, period)
    return jnp.minimum(i, period - i)
