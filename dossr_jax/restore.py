"""Restoration as one jitted program: a system of dossr_jax.systems on tiles and devices.

Canvases carry several images of different sizes, each in its top-left part. Geometry is in units
of one latent position, see systems.Geometry. A canvas larger than the tile is processed tile by
tile in every network, also inside every step of the solver.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from dossr_jax import gpu, method
from dossr_jax.area_means import keep_area_means
from dossr_jax.config import UPSCALE
from dossr_jax.config.sampler import ColorFix
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.image import (
    is_grey,
    levels_to_pixels,
    match_moments,
    moments,
    pixels_to_levels,
    remove_color,
    valid_part,
)
from dossr_jax.method import Controls, Noise, Restoration
from dossr_jax.models.attention import for_one_device
from dossr_jax.smooth_areas import keep_smooth_areas
from dossr_jax.systems import Run, system_of
from dossr_jax.tiling import tiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a compiled program depends on besides array shapes.

    `tile`, `overlap` and `margin` in units, as in dossr_jax.tiling; `tile` None runs whole
    canvases. `unit`: pixels of the result per unit. `tile_batch` tiles run together. `guided`:
    classifier-free guidance. Without `diffuse` the pre-restored image is the result. `stages`:
    return the pre-restored and the decoded image, too. `keep`: return all intermediate results, as
    floats. `shard` splits batches (of tiles, or of images where there are no tiles) over `devices`.
    """

    tile: int | None = None
    overlap: int = 0
    margin: int = 0
    unit: int = UPSCALE
    tile_batch: int = 1
    color_fix: ColorFix
    guided: bool = False
    truncate: bool = False
    diffuse: bool = True
    stages: bool = False
    keep: bool = False
    shard: NamedSharding | None = None
    devices: int


class _HashedOnce(nnx.GraphDef):
    """A graphdef that keeps its hash, of which jit asks in every call."""

    __slots__ = ("_hash",)

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            object.__setattr__(self, "_hash", super().__hash__())
        return self._hash


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State]:
    """The networks as :func:`restore` takes them.

    As nnx.split, whose graphdef is hashed anew in every call: 10 ms at SD 2.1 size.
    """
    graphdef, state = nnx.split(model)
    return _HashedOnce(graphdef.nodes, graphdef.attributes, graphdef.num_leaves), state


def hold(controls: Controls, eta_map: Array, side: int) -> Controls:
    """Controls by which what a map keeps stays at the LR latent.

    A shifting sequence eta + k (1 - eta) makes of the process the same one with every prediction
    drawn to the LR latent by k, see docs/method.md: as `fidelity` f does. Both are f + k (1 - f).

    Args:
      eta_map: k in [0, 1] of every pixel, (b, h, w, 1). side: pixels per latent position, which
        has their mean.
    """
    b, h, w, _ = eta_map.shape
    k = jnp.mean(eta_map.reshape(b, h // side, side, w // side, side, 1), axis=(2, 4))
    return dataclasses.replace(controls, fidelity=controls.fidelity + k * (1 - controls.fidelity))


class Images(NamedTuple):
    """The result (b, H, W, 3), see `restore`, and with layout.stages two stages of it.

    Those are the pre-restored image and the decoded one before the colour fix. All three are grey
    where the LR image is; networks for colour leave a tint there. The result has its mean colours,
    too, unless the system says otherwise, see dossr_jax.area_means.

    finite: whether networks and sampler gave numbers for every pixel of the image, bool (b,).
    """

    result: Array
    finite: Array
    pre_restored: Array | None = None
    decoded: Array | None = None


@functools.partial(
    jax.jit, static_argnames=("graphdef", "layout"), compiler_options=gpu.COMPILER_OPTIONS
)
def restore(
    graphdef: nnx.GraphDef,
    layout: Layout,
    state: nnx.State,
    lr: Array,
    size: Array,
    tiles: Array,
    count: Array,
    noise: Noise | None = None,
    table: SolverTable | None = None,
    controls: Controls | None = None,
    owned: Array | None = None,
    whole: Array | None = None,
) -> Images | Restoration | Array:
    """Restore a batch of images, or of parts of images, enlarged as the system does it.

    Args:
      graphdef, state: the split networks of any of dossr_jax.systems.
      lr: canvases (b, h, w, 3), uint8, uint16 or float in [0, 1], each image continued by
        reflection below and right of it. A fourth channel is a map of what is kept, see
        :func:`hold`: where it is 1 the result is the pre-restored image, finished as without
        `layout.diffuse`.
      size: valid part of every canvas in its pixels, int32 (b, 2).
      tiles: int32 (n, 3) rows (image, row, column) in units, the first `count` of them to run;
        unused where layout.tile is None.
      noise: of every image. table: solver, possibly padded. controls: see Controls. All three are
        unused, and may be absent, where nothing is sampled.
      owned: parts of an image, int32 (b, 2) as `size`, of which the moments are wanted.
      whole: moments of whole images by which the colour fix "adain" is to be made in their parts.

    Returns:
      Images of shape (b, kh, kw, 3), meaningful in the valid part, uint16 if `lr` is, else uint8;
      with layout.keep a Restoration. With `owned` the moments of the decoded and the pre-restored
      image, float32 (b, 2, 2, 3), see dossr_jax.image.moments.
    """
    model: Any = nnx.merge(graphdef, state)

    def over_tiles(
        fn: Callable[..., Array],
        inputs: Sequence[Array],
        in_px: Sequence[int],
        out_px: int,
        channels: int,
        of_images: Sequence[Array] = (),
    ) -> Array:
        return tiled(
            lambda index, *batch: fn(*batch, *(rows[index] for rows in of_images)),
            inputs,
            tiles,
            count,
            tile=layout.tile or 0,  # it runs where there are tiles
            overlap=layout.overlap,
            margin=layout.margin,
            in_px=in_px,
            out_px=out_px,
            out_channels=channels,
            batch=layout.tile_batch,
            constrain=share,
        )

    def share(batch: Array) -> Array:
        if layout.shard is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, layout.shard)

    system = system_of(model.config)
    dtype = jnp.uint16 if lr.dtype == jnp.uint16 else jnp.uint8
    lr, eta_map = levels_to_pixels(lr), None
    if lr.shape[-1] == 4:
        lr, eta_map = lr[..., :3], lr[..., 3:]
        controls = controls and hold(
            controls, eta_map, layout.unit // system.geometry(model.config).factor
        )
    run = Run(
        size=size,
        apply=method.whole if layout.tile is None else over_tiles,
        noise=noise,
        table=table,
        controls=controls,
        fix=layout.color_fix if owned is None and whole is None else "none",
        guided=layout.guided,
        diffuse=layout.diffuse,
        keep_path=layout.keep,
    )
    with for_one_device() if layout.devices == 1 else nullcontext():
        restored = system.restore(model, lr, run)
    if layout.keep:
        return restored
    factor = restored.result.shape[1] // lr.shape[1]
    if owned is not None:
        pair = restored.decoded, restored.pre_restored
        return jnp.stack([moments(image, factor * owned) for image in pair], axis=1)
    if whole is not None:
        matched = match_moments(restored.decoded, whole[:, 0], whole[:, 1])
        restored = restored._replace(result=matched)
    valid = valid_part(restored.result, factor * size)
    finite = jnp.all(jnp.isfinite(restored.result) | ~valid, axis=(1, 2, 3))

    def finish(image: Array) -> Array:
        if not system.keeps_areas(model.config):
            return image
        image = keep_area_means(image, lr, size)
        return keep_smooth_areas(image, lr, size) if dtype == jnp.uint16 else image

    result, grey = finish(restored.result), is_grey(lr)
    if eta_map is not None:
        # Last, as the autoencoder is not exact, and colours move in whole areas.
        kept = jnp.repeat(jnp.repeat(eta_map == 1, factor, axis=1), factor, axis=2)
        result = jnp.where(kept, finish(restored.pre_restored), result)
    stages = (restored.pre_restored, restored.decoded) if layout.stages else ()
    result, *stages = (
        pixels_to_levels(remove_color(image, grey), dtype, truncate=layout.truncate)
        for image in (result, *stages)
    )
    return Images(result, finite, *stages)
