"""Run a network over large canvases tile by tile, at one compiled tile shape.

Geometry is in *units* (latent positions): a canvas has a whole number of pixels per unit,
so that one list of tiles serves the LR image, the enlarged image and the latent alike. Planning is
numpy on the host, the loop itself pure JAX with a traced number of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

AnyArray = Array | np.ndarray

# Weight of a tile's margin. Where tiles overlap it is nothing against the neighbour's weight;
# where a tile is alone (the borders of the image) normalising makes it one.
_MARGIN_WEIGHT = 1e-6


def plan_tiles(
    height: int, width: int, tile: int, overlap: int, align: int = 1
) -> Int[np.ndarray, "n 2"]:
    """Top-left corners, int32 (n, 2) row-major, of `tile`-sided tiles covering height x width.

    All arguments are in units. Corners are multiples of `align`, neighbours share at least
    `overlap`, spread evenly, and the last tiles end with the image. Raises ValueError where
    height, width or tile is no multiple of `align`, a side is shorter than the tile, or
    overlap and alignment leave no room to advance.
    """
    rows = _plan_axis(height, tile, overlap, align)
    cols = _plan_axis(width, tile, overlap, align)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


def _plan_axis(length: int, tile: int, overlap: int, align: int) -> np.ndarray:
    if length % align or tile % align or length < tile:
        raise ValueError(
            f"side {length} and tile {tile} must be multiples of {align}, side >= tile"
        )
    stride = (tile - overlap) // align
    if overlap < 0 or stride < 1:
        raise ValueError(f"tile {tile} with overlap {overlap} cannot advance by {align}")
    span = (length - tile) // align
    steps = -(-span // stride)
    # span / steps <= stride, an integer, so that no rounded step exceeds it either.
    return (np.arange(steps + 1) * span // max(steps, 1) * align).astype(np.int32)


def window(side: int, overlap: int, margin: int = 0) -> Float[np.ndarray, "{side} {side}"]:
    """Blend weights of a tile, float64 (side, side), in (0, 1]; all arguments in pixels.

    Along each axis the weight rises as sin^2 over the outer `overlap` pixels and is 1 between.
    Where tiles overlap by exactly `overlap`, weights sum to one as they are; any other overlap
    needs normalising. The outermost `margin` pixels count (almost) nothing wherever another tile
    covers them: outputs there are spoilt by the tile's border. 2 * margin <= overlap <= side / 2,
    else ValueError.
    """
    if not 0 <= 2 * margin <= overlap <= side // 2:
        raise ValueError(f"need 0 <= 2*margin <= overlap <= side/2: {margin}, {overlap}, {side}")
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5 - margin
    length = overlap - 2 * margin
    rise = np.clip(distance / length, 0, 1) if length else distance > 0
    ramp = np.maximum(np.sin(np.pi / 2 * rise) ** 2, _MARGIN_WEIGHT)
    return ramp[:, None] * ramp[None, :]


def tiled(
    fn: Callable[..., Array],
    inputs: Sequence[Shaped[Array, "b _ _ _"]],
    tiles: Int[AnyArray, "n 3"],
    count: ArrayLike,
    *,
    tile: int,
    overlap: int,
    in_px: Sequence[int],
    out_px: int,
    out_channels: int,
    batch: int,
    margin: int = 0,
    constrain: Callable[[Array], Array] | None = None,
) -> Float[Array, "b _ _ {out_channels}"]:
    """Apply `fn` to `batch` tiles at a time and blend the results on one canvas per image.

    Args:
      fn: `fn(index, *tile_batches)`, index int32 (batch,) naming the image of each tile, tile
        batches (batch, tile * px, tile * px, c); returns (batch, tile * out_px, tile * out_px,
        out_channels). Surplus places in the last group repeat a tile and their result is dropped.
      inputs: canvases (b, height * px, width * px, c), height and width in units common to all.
      tiles: int32 (n, 3), rows (image, row, col), corners in units. Every tile lies on the canvas.
      count: traced int32, the number of leading rows of `tiles` to run.
      tile, overlap, margin: in units, as :func:`plan_tiles` and :func:`window` (there in pixels).
      in_px: pixels per unit of each input; out_px: of the result.
      constrain: applied to every gathered tile batch, for instance a sharding constraint that
        lets several devices share the batch.

    Returns:
      (b, height * out_px, width * out_px, out_channels), float32 at least, zero where no tile was.
      Depends on the order of an image's tiles by rounding only, on other images' not at all.
    """
    units = {
        (x.shape[0], *divmod(x.shape[1], px), *divmod(x.shape[2], px))
        for x, px in zip(inputs, in_px, strict=True)
    }
    images, height, rest_h, width, rest_w = next(iter(units))
    if len(units) != 1 or rest_h or rest_w:
        shapes = [x.shape for x in inputs]
        raise ValueError(f"canvases {shapes} at {list(in_px)} pixels per unit do not match")

    dtype = jnp.promote_types(inputs[0].dtype, jnp.float32)
    side = tile * out_px
    weight = jnp.asarray(window(side, overlap * out_px, margin * out_px), dtype)[None, :, :, None]
    tiles = jnp.pad(tiles, ((0, -tiles.shape[0] % batch), (0, 0)))
    count = jnp.asarray(count, jnp.int32)

    def group(g: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        start = g * batch
        live = count - start
        rows = lax.dynamic_slice_in_dim(tiles, start, batch)
        place = jnp.arange(batch, dtype=jnp.int32)
        rows = rows[jnp.minimum(place, live - 1)]
        batches = [_cut(x, rows, px, tile * px) for x, px in zip(inputs, in_px, strict=True)]
        if constrain is not None:
            batches = [constrain(x) for x in batches]
        result = fn(rows[:, 0], *batches).astype(dtype) * weight

        def add(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            total, norm = state
            corner = _corner(rows[k], out_px)
            patch = lax.dynamic_slice_in_dim(result, k, 1)
            return _add_at(total, patch, corner), _add_at(norm, weight, corner)

        # One after the other: tiles of a group may overlap, and a scatter of sums would make the
        # order of additions, hence the last bit, the hardware's choice.
        return lax.fori_loop(0, jnp.minimum(live, batch), add, state)

    shape = (images, height * out_px, width * out_px)
    empty = jnp.zeros((*shape, out_channels), dtype), jnp.zeros((*shape, 1), dtype)
    total, norm = lax.fori_loop(0, (count + batch - 1) // batch, group, empty)
    return total / jnp.where(norm > 0, norm, 1)


def _corner(row: Array, px: int) -> tuple[Array, ...]:
    """Where a tile row (image, row, col) starts on a canvas of `px` pixels per unit."""
    return row[0], row[1] * px, row[2] * px, jnp.zeros_like(row[0])


def _cut(canvas: Array, rows: Array, px: int, side: int) -> Array:
    shape = (1, side, side, canvas.shape[3])
    return jax.vmap(lambda row: lax.dynamic_slice(canvas, _corner(row, px), shape)[0])(rows)


def _add_at(canvas: Array, patch: Array, corner: tuple[Array, ...]) -> Array:
    here = lax.dynamic_slice(canvas, corner, patch.shape)
    return lax.dynamic_update_slice(canvas, here + patch, corner)
