"""Resizing with a traced scale between canvases of fixed size.

Each mode treats both axes alike: output i is a weighted sum of a window of inputs. Coordinates and
weights are PyTorch's (`interpolate` with align_corners=False): bicubic has a = -0.75 and no
antialiasing; "antialiased" is bicubic with a = -0.5 over a window widened by the step, as Pillow's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dossr_jax.data.degradation.arithmetic import add_up, product

MODES = ("area", "bilinear", "bicubic", "antialiased")

_SHORT = 4  # inputs in the longest window of "bicubic"


class Resize(NamedTuple):
    """One resize: from the image's size to `size`; all traced.

    `step` is the distance between outputs in inputs. Where PyTorch is given a scale factor, it is
    the factor's inverse; where it is given a size, the ratio of the sizes.
    """

    size: jax.Array  # (2,) int32: height and width of the result
    step: jax.Array  # (2,) float32
    mode: jax.Array  # int32, index into MODES


def resize_gather(
    image: jax.Array,
    valid: jax.Array,
    resize: Resize,
    canvas: tuple[int, int],
    *,
    antialiased: bool,
) -> jax.Array:
    """Resize by gathering the inputs of each window: few operations, but gathers; for CPUs.

    Args:
      image: (c, h, w) float32, of which [:, :valid[0], :valid[1]] is image.
      valid: (2,) int32.
      resize: what to do.
      canvas: height and width of the returned array.
      antialiased: whether `resize.mode` can be that one.

    Returns:
      (c, *canvas) float32; outside resize.size the values mean nothing.
    """
    x = image
    for axis in (0, 1):
        line = _line(valid, resize, axis, canvas, antialiased)
        # Indices and weights are operands of the branches, so that they are computed once: XLA
        # would do it again for every pixel, and two roundings of a coordinate can differ.
        first = line.first()
        # Short windows are one pass over the outputs, long ones no longer than they need be.
        x = lax.cond(
            line.short(),
            functools.partial(_gather_four, line),
            functools.partial(_gather_loop, line),
            *(x, first, line.weights(first[:, None] + np.arange(_SHORT, dtype=np.int32)[None])),
        )
        # Turning the image is cheaper than gathering columns, which do not lie together.
        x = jnp.swapaxes(x, 1, 2)
    return x


def resize_dense(
    image: jax.Array,
    valid: jax.Array,
    resize: Resize,
    canvas: tuple[int, int],
    *,
    antialiased: bool,
) -> jax.Array:
    """As `resize_gather`, by two products with matrices: for accelerators."""
    matrices = []
    for axis in (0, 1):
        line = _line(valid, resize, axis, canvas, antialiased)
        at = np.arange(-2, image.shape[1 + axis] + 2, dtype=np.int32)[None]
        weights = line.weights(jnp.asarray(at))
        # The two inputs past either edge are the pixel there.
        before = jnp.where(at == 0, weights[:, :1] + weights[:, 1:2], 0.0)
        after = jnp.sum(jnp.where(at >= line.inputs, weights, 0.0), axis=1, keepdims=True)
        after = jnp.where(at == line.inputs - 1, after, 0.0)
        matrix = jnp.where((at >= 0) & (at < line.inputs), weights, 0.0) + before + after
        if antialiased:
            total = jnp.sum(matrix, axis=1, keepdims=True)
            matrix = matrix / jnp.where(total == 0, 1.0, total)  # nothing beyond the result's size
        matrices.append(matrix[:, 2:-2])
    return product("yi,cij,xj->cyx", matrices[0], image, matrices[1])


def _gather_four(line: _Line, x: jax.Array, first: jax.Array, weights: jax.Array) -> jax.Array:
    inputs = [_rows(x, first + tap, line.inputs) for tap in range(_SHORT)]
    return add_up(weights[None, :, tap, None] * inputs[tap] for tap in range(_SHORT))


def _gather_loop(line: _Line, x: jax.Array, first: jax.Array, weights: jax.Array) -> jax.Array:
    def add(tap: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, sums, weight = carry  # the weights, too: they are the next tap's by then
        total = total + weight[None, :, None] * _rows(x, first + tap, line.inputs)
        return total, sums + weight, line.weights((first + tap + 1)[:, None])[:, 0]

    blank = jnp.zeros((x.shape[0], line.count, x.shape[2]), x.dtype)
    start = blank, jnp.zeros(line.count, x.dtype), weights[:, 0]
    total, sums, _ = lax.fori_loop(0, line.longest(), add, start)
    return total / jnp.where(sums == 0, 1.0, sums)[None, :, None]


def _rows(x: jax.Array, at: jax.Array, inputs: jax.Array) -> jax.Array:
    """Rows of (c, h, w); beyond the image its nearest."""
    return x.at[:, jnp.clip(at, 0, inputs - 1)].get(mode="promise_in_bounds")


def _line(
    valid: jax.Array, resize: Resize, axis: int, canvas: tuple[int, int], antialiased: bool
) -> _Line:
    return _Line(
        valid[axis], resize.size[axis], resize.step[axis], resize.mode, canvas[axis], antialiased
    )


class _Line(NamedTuple):
    """A resize along one axis: `count` outputs, of which the first `outputs` count."""

    inputs: jax.Array
    outputs: jax.Array
    step: jax.Array
    mode: jax.Array
    count: int
    antialiased: bool

    def first(self) -> jax.Array:
        """First input of every output's window, (count,) int32, before the image if need be."""
        i = jnp.arange(self.count)
        centre = (i + 0.5) * self.step
        windows = [
            i * self.inputs // self.outputs,
            jnp.floor(jnp.maximum(centre - 0.5, 0.0)).astype(jnp.int32),
            jnp.floor(centre - 0.5).astype(jnp.int32) - 1,
        ]
        if self.antialiased:
            wide = jnp.floor(centre - 2 * jnp.maximum(self.step, 1.0) + 0.5)
            windows.append(wide.astype(jnp.int32))
        return lax.select_n(jnp.broadcast_to(self.mode, i.shape), *windows)

    def short(self) -> jax.Array:
        """Whether no window is longer than four inputs and the weights sum to one as they are."""
        area = self.mode == MODES.index("area")
        antialiased = self.mode == MODES.index("antialiased")
        return ~antialiased & (~area | (self.longest() <= _SHORT))

    def longest(self) -> jax.Array:
        """Most inputs in a window of the modes "area" and "antialiased"."""
        area = -(-self.inputs // self.outputs) + 1
        wide = jnp.ceil(4 * jnp.maximum(self.step, 1.0)).astype(jnp.int32) + 1
        return jnp.where(self.mode == MODES.index("area"), area, wide)

    def weights(self, at: jax.Array) -> jax.Array:
        """Weights (count, n) of the inputs at (count or 1, n) int32, also outside the image.

        Continuous in the coordinates, so that it does not matter which way these are rounded.
        Those of "antialiased" are still to be divided by their sum.
        """
        i = jnp.arange(self.count)[:, None]
        centre = (i + 0.5) * self.step
        # PyTorch's adaptive mean: whole pixels, from the sizes alone.
        start = i * self.inputs // self.outputs
        end = ((i + 1) * self.inputs + self.outputs - 1) // self.outputs
        modes = [
            ((at >= start) & (at < end)) / (end - start),
            jnp.maximum(1 - jnp.abs(jnp.maximum(centre - 0.5, 0.0) - at), 0.0),
            _cubic(centre - 0.5 - at, -0.75),
        ]
        if self.antialiased:
            wide = _cubic((at + 0.5 - centre) / jnp.maximum(self.step, 1.0), -0.5)
            modes.append(jnp.where((at >= 0) & (at < self.inputs), wide, 0.0))
        return lax.select_n(jnp.broadcast_to(self.mode, modes[0].shape), *modes)


def _cubic(x: jax.Array, a: float) -> jax.Array:
    """Keys' cubic convolution kernel."""
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))
