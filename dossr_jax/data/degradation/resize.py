"""Resizing with a traced scale between canvases of fixed size.

An image lies in the top left corner of its canvas; how much of the canvas is image is traced. Every
mode is the same per axis: output i is a weighted sum of a window of inputs. Coordinates and
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

MODES = ("area", "bilinear", "bicubic", "antialiased")


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
        # Branches, so that short windows are one pass over the outputs and long ones are no longer
        # than they need be; for each axis, since XLA would otherwise compute the rows again for
        # every column that takes them.
        x = lax.cond(
            (resize.mode == MODES.index("bilinear")) | (resize.mode == MODES.index("bicubic")),
            functools.partial(_gather_four, line, axis),
            functools.partial(_gather_loop, line, axis),
            x,
            line.first(),
        )
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
    # Float32 throughout: accelerators would round the factors otherwise.
    return jnp.einsum(
        "yi,cij,xj->cyx", matrices[0], image, matrices[1], precision=lax.Precision.HIGHEST
    )


def _gather_four(line: _Line, axis: int, x: jax.Array, first: jax.Array) -> jax.Array:
    at = first[:, None] + np.arange(4, dtype=np.int32)[None]
    weights = line.weights(at)
    inputs = [_take(x, at[:, tap], axis, line.inputs) for tap in range(4)]
    return sum(_along(weights[:, tap], axis) * inputs[tap] for tap in range(4))


def _gather_loop(line: _Line, axis: int, x: jax.Array, first: jax.Array) -> jax.Array:
    def take(tap: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        weights = line.weights((first + tap)[:, None])[:, 0]
        return _along(weights, axis) * _take(x, first + tap, axis, line.inputs), weights

    def add(tap: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(jnp.add, sums, take(tap))

    total, weights = lax.fori_loop(1, line.longest(), add, take(0))
    return total / _along(jnp.where(weights == 0, 1.0, weights), axis)


def _take(x: jax.Array, at: jax.Array, axis: int, inputs: jax.Array) -> jax.Array:
    """Rows or columns of (c, h, w); beyond the image its nearest."""
    index = (slice(None),) * (1 + axis) + (jnp.clip(at, 0, inputs - 1),)
    return x.at[index].get(mode="promise_in_bounds")


def _along(weights: jax.Array, axis: int) -> jax.Array:
    return weights.reshape([1, -1, 1] if axis == 0 else [1, 1, -1])


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
        """First input of every output's window, (count,) int32, before the image if need be.

        A switch, so that it is computed once: indices and weights from two roundings of the same
        coordinate could miss each other by a pixel.
        """
        i = jnp.arange(self.count)
        centre = (i + 0.5) * self.step
        windows = [
            lambda: i * self.inputs // self.outputs,
            lambda: jnp.floor(jnp.maximum(centre - 0.5, 0.0)).astype(jnp.int32),
            lambda: jnp.floor(centre - 0.5).astype(jnp.int32) - 1,
            lambda: jnp.floor(centre - 2 * jnp.maximum(self.step, 1.0) + 0.5).astype(jnp.int32),
        ]
        return lax.switch(self.mode, windows if self.antialiased else windows[:-1])

    def longest(self) -> jax.Array:
        """Most inputs in a window of the modes "area" and "antialiased"."""
        area = -(-self.inputs // self.outputs) + 1
        wide = jnp.ceil(4 * jnp.maximum(self.step, 1.0)).astype(jnp.int32) + 1
        return jnp.where(self.mode == MODES.index("area"), area, wide)

    def weights(self, at: jax.Array) -> jax.Array:
        """Weights (count, n) of the inputs at (count or 1, n) int32, also outside the image.

        Continuous in the coordinates, so that it does not matter which way these are rounded.
        Those of "antialiased" are still to be divided by their sum. A switch for the other reason
        too: XLA would compute the weights again for every pixel.
        """
        i = jnp.arange(self.count)[:, None]
        centre = (i + 0.5) * self.step

        def area() -> jax.Array:  # PyTorch's adaptive mean: whole pixels, from the sizes alone
            start = i * self.inputs // self.outputs
            end = ((i + 1) * self.inputs + self.outputs - 1) // self.outputs
            return ((at >= start) & (at < end)) / (end - start)

        def bilinear() -> jax.Array:
            return jnp.maximum(1 - jnp.abs(jnp.maximum(centre - 0.5, 0.0) - at), 0.0)

        def bicubic() -> jax.Array:
            return _cubic(centre - 0.5 - at, -0.75)

        def antialiased() -> jax.Array:
            weights = _cubic((at + 0.5 - centre) / jnp.maximum(self.step, 1.0), -0.5)
            return jnp.where((at >= 0) & (at < self.inputs), weights, 0.0)

        modes = [area, bilinear, bicubic, antialiased]
        return lax.switch(self.mode, modes if self.antialiased else modes[:-1])


def _cubic(x: jax.Array, a: float) -> jax.Array:
    """Keys' cubic convolution kernel."""
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))
