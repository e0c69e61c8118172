"""The chain of operations on one image, and its application to a batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dossr_jax.data.degradation import filters
from dossr_jax.data.degradation import noise as noise_lib
from dossr_jax.data.degradation import resize as resize_lib
from dossr_jax.data.degradation.jpeg import jpeg
from dossr_jax.data.degradation.noise import Levels, Noise
from dossr_jax.data.degradation.plan import Blur, Jpeg, Plan, draw_plan
from dossr_jax.data.degradation.presets import Outline, Table
from dossr_jax.data.degradation.resize import Resize

Side = tuple[int, int]


class Programs(NamedTuple):
    """The operations for which processors and accelerators need different programs."""

    correlate: filters.Correlate
    resize: Callable[..., jax.Array]
    levels: Levels


CPU = Programs(filters.correlate_separable, resize_lib.resize_gather, noise_lib.levels_scatter)
ACCELERATOR = Programs(filters.correlate_tiles, resize_lib.resize_dense, noise_lib.levels_reduce)

# For images from this side on, a CPU has a canvas for first resizes by up to each of these factors
# beside the largest. Smaller ones take little time anyhow, and every canvas takes time to compile.
_LARGE_SIDE = 256
_FACTORS = (0.6, 1.0)


def degrade(keys: jax.Array, hr: jax.Array, table: Table, *, scale: int) -> jax.Array:
    """LR images of a batch of HR crops, degraded independently.

    A sample's result depends on its key and image alone. Samples never meet: with a batch split
    over devices, apply it by `dossr_jax.parallel.on_each_device`. A CPU takes samples one by one on
    one or two cores; with one device per core, all of them work.

    Args:
      keys: (b,) JAX keys.
      hr: (b, h, w, 3) float32 in [0, 1], sides multiples of the scale.
      table: presets, one drawn for each sample.
      scale: HR side by LR side, that of the table.

    Returns:
      (b, h/scale, w/scale, 3) float32, multiples of 1/255 in [0, 1].

    Raises:
      ValueError: the table's scale is another, or the sides are no multiples of it.
    """
    if table.outline.scale != scale or hr.shape[1] % scale or hr.shape[2] % scale:
        raise ValueError(f"scale {scale}, presets of {table.outline.scale}, images {hr.shape}")
    shape = hr.shape[1], hr.shape[2]
    plans = jax.vmap(lambda key: draw_plan(key, table, shape))(keys)
    lr = lax.platform_dependent(
        plans,
        jnp.moveaxis(hr, -1, 1),
        cpu=Chain(table.outline, shape, CPU).in_turn,
        default=Chain(table.outline, shape, ACCELERATOR).together,
    )
    return jnp.moveaxis(lr, 1, -1)


@dataclasses.dataclass(frozen=True)
class Chain:
    """The operations on HR images of one shape; `noise` adds noise to an image of a size."""

    outline: Outline
    shape: Side
    programs: Programs
    noise: Callable[[jax.Array, jax.Array, Noise, Levels], jax.Array] = noise_lib.add_noise

    def together(self, plans: Plan, hr: jax.Array) -> jax.Array:
        """All samples (b, 3, h, w) at once on the largest canvas: for accelerators."""
        return jax.vmap(self)(plans, hr)

    def in_turn(self, plans: Plan, hr: jax.Array) -> jax.Array:
        """Samples one by one, each on the smallest canvas that holds it: for CPUs."""
        low, high = self.outline.first.factor
        steps = _FACTORS if max(self.shape) >= _LARGE_SIDE else ()
        factors = [*(factor for factor in steps if low < factor < high), high]
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
          plan: the sample's draws.
          x: (3, h, w) float32 in [0, 1].

        Returns:
          (3, h/scale, w/scale) float32, multiples of 1/255 in [0, 1].
        """
        x = self._middle(plan, self._before(plan, x), largest=self.outline.first.factor[1])
        return self._after(plan, x)

    @property
    def _lr_shape(self) -> Side:
        return self.shape[0] // self.outline.scale, self.shape[1] // self.outline.scale

    def _before(self, plan: Plan, x: jax.Array) -> jax.Array:
        """All before the first resize."""
        size = jnp.asarray(self.shape, jnp.int32)
        if self.outline.sharpen:
            sharpen = functools.partial(
                filters.sharpen, valid=size, correlate=self.programs.correlate
            )
            x = lax.cond(plan.sharpen, sharpen, lambda x: x, x)
        if self.outline.first.blur:
            x = self._blurred(x, size, plan.first.blur)
        return x

    def _middle(self, plan: Plan, x: jax.Array, *, largest: float) -> jax.Array:
        """From the first to the second resize, where the factor of the first has a bound."""
        step, size = plan.first, jnp.asarray(self.shape, jnp.int32)
        if self.outline.first.factor != (1.0, 1.0):
            x = self._resized(x, size, step.resize, _canvas(self.shape, largest))
            size = step.resize.size
        if self.outline.first.noise:
            x = self.noise(x, size, step.noise, self.programs.levels)
        if self.outline.first.jpeg:
            x = _compressed(x, size, step.jpeg, step.jpeg.apply)
        if self.outline.second.blur:
            x = self._blurred(x, size, plan.second.blur)
        low, high = self.outline.second.factor
        if x.shape[1:] != self._lr_shape or (low, high) != (1.0, 1.0):
            canvas = _canvas(self._lr_shape, high)
            x = self._resized(x, size, plan.second.resize, canvas)
        return x

    def _after(self, plan: Plan, x: jax.Array) -> jax.Array:
        """All after the second resize."""
        step, size = plan.second, plan.second.resize.size
        last = plan.jpeg_last
        if self.outline.second.noise:
            x = self.noise(x, size, step.noise, self.programs.levels)
        if self.outline.second.jpeg:
            x = _compressed(x, size, step.jpeg, step.jpeg.apply & ~last)
        if self.outline.second.factor != (1.0, 1.0):
            x = self._resized(x, size, plan.last_resize, self._lr_shape)
            size = plan.last_resize.size
        if self.outline.sinc:
            x = self._blurred(x, size, plan.sinc)
        if self.outline.second.jpeg:
            x = _compressed(x, size, step.jpeg, step.jpeg.apply & last)
        return jnp.round(jnp.clip(x, 0, 1) * 255) / 255

    def _blurred(self, x: jax.Array, size: jax.Array, blur: Blur) -> jax.Array:
        def run(x: jax.Array) -> jax.Array:
            return self.programs.correlate(x, size, blur.kernel)

        return lax.cond(blur.apply, run, lambda x: x, x)

    def _resized(self, x: jax.Array, size: jax.Array, step: Resize, canvas: Side) -> jax.Array:
        return self.programs.resize(x, size, step, canvas, antialiased=self.outline.antialiased)


def _compressed(x: jax.Array, size: jax.Array, step: Jpeg, apply: jax.Array) -> jax.Array:
    def run(x: jax.Array) -> jax.Array:
        return jpeg(jnp.clip(x, 0, 1), size, step.quality)

    return lax.cond(apply, run, lambda x: x, x)


def _canvas(shape: Side, factor: float) -> Side:
    return math.ceil(factor * shape[0]), math.ceil(factor * shape[1])
