"""The chain of operations on one image, and its application to a batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dossr_jax.config import FILLED
from dossr_jax.data.degradation import filters
from dossr_jax.data.degradation import noise as noise_lib
from dossr_jax.data.degradation import resize as resize_lib
from dossr_jax.data.degradation.holes import hole_mask
from dossr_jax.data.degradation.jpeg import jpeg
from dossr_jax.data.degradation.plan import Blur, Jpeg, Plan, draw_plan
from dossr_jax.data.degradation.presets import Preset, ResizeOdds
from dossr_jax.data.degradation.resize import MODES, Resize

Side = tuple[int, int]


class Programs(NamedTuple):
    """The operations for which CPUs and accelerators need different programs."""

    correlate: filters.Correlate
    resize: Callable[..., jax.Array]
    levels: noise_lib.Levels


CPU = Programs(filters.correlate_separable, resize_lib.resize_gather, noise_lib.levels_scatter)
ACCELERATOR = Programs(filters.correlate_tiles, resize_lib.resize_dense, noise_lib.levels_reduce)

# For images from this side on, a CPU has a canvas for first resizes by up to each of these factors
# beside the largest. Smaller images take little time anyhow, and each canvas takes time to compile.
_LARGE_SIDE = 256
_FACTORS = (0.6, 1.0)


def degrade(keys: jax.Array, hr: jax.Array, presets: Sequence[Preset]) -> jax.Array:
    """LR images of a batch of HR crops, degraded independently.

    An image's result depends on its key and pixels alone. To split a batch over devices, apply
    this by `dossr_jax.parallel.on_each_device`. A CPU takes images one by one on one or two cores;
    with one device per core, all of them work.

    Args:
      keys: (b,) JAX keys.
      hr: (b, h, w, 3) float32 in [0, 1], sides multiples of the presets' scale.
      presets: of one scale, see `choose_presets`; one is drawn per image, uniformly.

    Returns:
      (b, h/scale, w/scale, 3) float32, multiples of 1/255 in [0, 1].

    Raises:
      ValueError: a side is not a multiple of the scale.
    """
    scale, shape = presets[0].scale, (hr.shape[1], hr.shape[2])
    if shape[0] % scale or shape[1] % scale:
        raise ValueError(f"images {hr.shape}: the sides are not multiples of the scale {scale}")
    plans = jax.vmap(lambda key: draw_plan(key, presets, shape))(keys)
    lr = lax.platform_dependent(
        plans,
        jnp.moveaxis(hr, -1, 1),
        cpu=Chain(presets, shape, CPU).in_turn,
        default=jax.vmap(Chain(presets, shape, ACCELERATOR)),
    )
    return jnp.moveaxis(lr, 1, -1)


def missing(keys: jax.Array, shape: Side, presets: Sequence[Preset]) -> jax.Array:
    """The pixels that :func:`degrade` makes holes of, bool (b, h/scale, w/scale).

    Args:
      keys, presets: as there. shape: height and width of the HR images.
    """
    side = shape[0] // presets[0].scale, shape[1] // presets[0].scale

    def one(key: jax.Array) -> jax.Array:
        holes = draw_plan(key, presets, shape).holes
        return jnp.zeros(side, bool) if holes is None else hole_mask(holes, side)

    return jax.vmap(one)(keys)


@dataclasses.dataclass(frozen=True)
class Chain:
    """The operations of some presets on HR images of one shape.

    What none of the presets does is left out of the compiled program.
    """

    presets: Sequence[Preset]
    shape: Side
    programs: Programs

    def in_turn(self, plans: Plan, hr: jax.Array) -> jax.Array:
        """Carry out plans on images (b, 3, h, w) one by one, each on the smallest canvas for it.

        For CPUs; accelerators take all images at once on the largest canvas, by `jax.vmap`.
        """
        resize = self._most.first.resize
        several = _scales(resize) and max(self.shape) >= _LARGE_SIDE
        factors = [factor for factor in _FACTORS if several and factor < resize.factor[1]]
        factors.append(resize.factor[1])
        middles = [functools.partial(self._middle, largest=factor) for factor in factors]

        def one(sample: tuple[Plan, jax.Array]) -> jax.Array:
            plan, x = sample
            x = self._before(plan, x)
            factor = 1 / plan.first.resize.step[0]
            smallest = jnp.sum(factor > np.array(factors[:-1], np.float32))
            x = lax.switch(smallest, middles, plan, x)
            return self._after(plan, x)

        return lax.map(one, (plans, hr))

    def __call__(self, plan: Plan, x: jax.Array) -> jax.Array:
        """Carry out a plan on one image.

        Args:
          plan: the random draws for this image.
          x: (3, h, w) float32 in [0, 1].

        Returns:
          (3, h/scale, w/scale) float32, multiples of 1/255 in [0, 1].
        """
        x = self._before(plan, x)
        x = self._middle(plan, x, largest=self._most.first.resize.factor[1])
        return self._after(plan, x)

    @functools.cached_property
    def _most(self) -> Preset:
        """The largest value of each number: where odds are 0 here, no preset has any."""
        return jax.tree.map(lambda *values: max(values), *self.presets)

    @property
    def _lr_shape(self) -> Side:
        scale = self.presets[0].scale
        return self.shape[0] // scale, self.shape[1] // scale

    def _before(self, plan: Plan, x: jax.Array) -> jax.Array:
        """All before the first resize."""
        size = jnp.asarray(self.shape, jnp.int32)
        if self._most.sharpen_odds:
            sharpen, correlate = filters.sharpen, self.programs.correlate
            x = lax.cond(plan.sharpen, lambda x: sharpen(x, size, correlate), lambda x: x, x)
        if self._most.first.blur.odds:
            x = self._blur(x, size, plan.first.blur)
        return x

    def _middle(self, plan: Plan, x: jax.Array, *, largest: float) -> jax.Array:
        """From the first to the second resize, for factors of the first up to `largest`."""
        step, size = plan.first, jnp.asarray(self.shape, jnp.int32)
        if _scales(self._most.first.resize):
            x = self._resize(x, size, step.resize, _canvas(self.shape, largest))
            size = step.resize.size
        if self._most.first.noise.odds:
            x = noise_lib.add_noise(x, size, step.noise, self.programs.levels)
        if self._most.first.jpeg.odds:
            x = _compress(x, size, step.jpeg, step.jpeg.apply)
        if self._most.second.blur.odds:
            x = self._blur(x, size, plan.second.blur)
        resize = self._most.second.resize
        if x.shape[1:] != self._lr_shape or _scales(resize):
            canvas = _canvas(self._lr_shape, resize.factor[1])
            x = self._resize(x, size, plan.second.resize, canvas)
        return x

    def _after(self, plan: Plan, x: jax.Array) -> jax.Array:
        """All after the second resize."""
        most, step, size = self._most.second, plan.second, plan.second.resize.size
        last = plan.jpeg_last
        if most.noise.odds:
            x = noise_lib.add_noise(x, size, step.noise, self.programs.levels)
        if most.jpeg.odds:
            x = _compress(x, size, step.jpeg, step.jpeg.apply & ~last)
        if _scales(most.resize):
            x = self._resize(x, size, plan.last_resize, self._lr_shape)
            size = plan.last_resize.size
        if self._most.sinc_odds:
            x = self._blur(x, size, plan.sinc)
        if most.jpeg.odds:
            x = _compress(x, size, step.jpeg, step.jpeg.apply & last)
        if plan.holes is not None:
            x = jnp.where(hole_mask(plan.holes, self._lr_shape), FILLED, x)
        return jnp.round(jnp.clip(x, 0, 1) * 255) / 255

    def _blur(self, x: jax.Array, size: jax.Array, blur: Blur) -> jax.Array:
        correlate = self.programs.correlate
        return lax.cond(blur.apply, lambda x: correlate(x, size, blur.kernel), lambda x: x, x)

    def _resize(self, x: jax.Array, size: jax.Array, step: Resize, canvas: Side) -> jax.Array:
        antialiased = MODES.index("antialiased")
        passes = self._most.first, self._most.second
        can = any(p.resize.modes[antialiased] for p in passes)
        return self.programs.resize(x, size, step, canvas, antialiased=can)


def _scales(resize: ResizeOdds) -> bool:
    return resize.directions[:2] != (0, 0)


def _compress(x: jax.Array, size: jax.Array, step: Jpeg, apply: jax.Array) -> jax.Array:
    return lax.cond(apply, lambda x: jpeg(jnp.clip(x, 0, 1), size, step.quality), lambda x: x, x)


def _canvas(shape: Side, factor: float) -> Side:
    return math.ceil(factor * shape[0]), math.ceil(factor * shape[1])
