"""Restoration as one pure program: pre-restore, encode, solve, decode, colour fix, refine.

Canvases carry several images of different sizes, each in its top-left part. Geometry is in units
of one latent position, f pixels of the result and f/4 pixels of the input wide. A canvas larger
than the tile is worked on tile by tile in every network, also inside every step of the solver.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from dossr_jax.diffusion import process
from dossr_jax.diffusion.solver import Point, SolverTable, sample
from dossr_jax.image import (
    ColorFix,
    batch_position_noise,
    color_fix,
    detail_fix,
    pixels_to_uint8,
)
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.tiling import tiled

_POSTERIOR, _START, _FIRST_STEP = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a compiled program depends on besides array shapes.

    `tile`, `overlap` and `margin` in units, as in dossr_jax.tiling; `tile` None runs whole
    canvases. `tile_batch` tiles run together. `guided`: classifier-free guidance, a second UNet
    pass a step. Without `diffuse` the pre-restored image is the result, without `refine` the
    refiner that a model may have does not run. `shard` splits batches (of tiles, or of images where
    there are no tiles) over devices.
    """

    tile: int | None
    overlap: int
    margin: int
    tile_batch: int
    color_fix: ColorFix
    guided: bool
    truncate: bool = False
    diffuse: bool = True
    refine: bool = True
    shard: NamedSharding | None = None


class Knobs(NamedTuple):
    """Traced settings: changing them compiles nothing.

    context, negative: prompt embeddings (m, d). cfg_scale, strength (of the ControlNet, a factor
    on its residuals), fidelity (0 free, 1 keeps the pre-restored latents) and detail (how much of
    what diffusion changed a refiner lets through) are scalars.
    """

    context: Array
    negative: Array
    cfg_scale: Array
    strength: Array
    fidelity: Array
    detail: Array


class Stages(NamedTuple):
    """Pictures on the way, uint8 (b, H, W, 3): pre-restored, decoded before the colour fix, and
    the result."""

    pre_restored: Array
    decoded: Array
    result: Array


@functools.partial(jax.jit, static_argnames=("graphdef", "layout"))
def restore(
    graphdef: nnx.GraphDef,
    layout: Layout,
    state: nnx.State,
    lr: Array,
    size: Array,
    tiles: Array,
    count: Array,
    keys: Array,
    table: SolverTable,
    knobs: Knobs,
) -> Stages:
    """Enlarge a batch of images four times.

    Args:
      graphdef, state: a split :class:`dossr_jax.models.dossr.DoSSR`.
      lr: canvases uint8 (b, h, w, 3), each image continued by reflection below and right of it.
      size: valid part of every canvas in its pixels, int32 (b, 2).
      tiles: int32 (n, 3) rows (image, row, column) in units, the first `count` of them to run;
        unused where layout.tile is None.
      keys: one random key an image, (b,). Noise depends on key and position only.
      table: solver, possibly padded.

    Returns:
      Stages of shape (b, 4h, 4w, 3), meaningful in the valid part.
    """
    model = nnx.merge(graphdef, state)
    vae = model.config.vae
    unit, z = vae.downscale, vae.z_channels

    def over_tiles(
        fn: Callable[..., Array],
        inputs: Sequence[Array],
        in_px: Sequence[int],
        out_px: int,
        channels: int,
    ) -> Array:
        if layout.tile is None:
            return fn(*inputs).astype(jnp.float32)
        return tiled(
            lambda index, *batch: fn(*batch),
            inputs,
            tiles,
            count,
            tile=layout.tile,
            overlap=layout.overlap,
            margin=layout.margin,
            in_px=in_px,
            out_px=out_px,
            out_channels=channels,
            batch=layout.tile_batch,
            constrain=split,
        )

    def split(batch: Array) -> Array:
        if layout.shard is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, layout.shard)

    lr = lr.astype(jnp.float32) / 255
    pre = over_tiles(model.pre_restore, [lr], [unit // UPSCALE], unit, 3)
    to_uint8 = functools.partial(pixels_to_uint8, truncate=layout.truncate)
    if not layout.diffuse:
        return Stages(to_uint8(pre), to_uint8(pre), to_uint8(pre))

    def encode(image: Array) -> Array:
        moments, hint = model.encode(image)
        return jnp.concatenate([moments, hint[..., :z]], axis=-1)

    encoded = over_tiles(encode, [pre], [unit], 1, 3 * z)
    moments, hint = encoded[..., : 2 * z], encoded[..., 2 * z :] * vae.scale_factor

    def noise(*draws: Array | int) -> Array:
        """(len(draws) b, h, w, z): generators compile slowly, so draws share one."""
        folded = [jax.vmap(lambda key, d=d: jax.random.fold_in(key, d))(keys) for d in draws]
        return batch_position_noise(jnp.concatenate(folded), *moments.shape[1:3], z)

    noise_posterior, noise_init = jnp.split(noise(_POSTERIOR, _START), 2)
    x_lr = model.latents(moments, noise_posterior)

    def predict(point: Point, x: Array, hint: Array) -> Array:
        t = jnp.broadcast_to(point.t, x.shape[:1])

        def eps(context: Array) -> Array:
            context = jnp.broadcast_to(context, (x.shape[0], *context.shape))
            return model.predict_noise(x, t, context, hint, strength=knobs.strength)

        if not layout.guided:
            return eps(knobs.context)
        return process.guide(eps(knobs.context), eps(knobs.negative), knobs.cfg_scale)

    def denoise(x: Array, point: Point) -> Array:
        eps = over_tiles(functools.partial(predict, point), [x, hint], [1, 1], 1, z)
        levels = point.alpha, point.sigma, point.eta
        x0 = process.data_prediction(x, eps, x_lr, *levels, model.config.process.lr_skip)
        return process.toward_lr(x0, x_lr, knobs.fidelity)

    latents = sample(denoise, x_lr, table, noise_init, lambda i: noise(_FIRST_STEP + i))
    decoded = over_tiles(model.decode, [latents], [1], unit, 3)
    result = decoded
    if layout.color_fix == "residual":
        # What the autoencoder alone makes of the pre-restored image is not the diffusion's doing.
        result = pre + decoded - over_tiles(model.decode, [x_lr], [1], unit, 3)
    result = color_fix(layout.color_fix, result, pre, UPSCALE * size)
    if layout.refine and model.refiner is not None:
        in_px = [unit // UPSCALE, unit, unit]
        refine = functools.partial(model.refiner, detail=knobs.detail)
        refined = over_tiles(refine, [lr, pre, result], in_px, unit, 3)
        result = detail_fix(refined, pre, UPSCALE * size)
    return Stages(to_uint8(pre), to_uint8(decoded), to_uint8(result))
