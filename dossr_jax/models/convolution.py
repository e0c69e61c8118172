"""Convolutions that XLA alone is slow at: of few positions by large kernels, of enlarged images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

# SD 2.1's UNet at 8x8 and 16x16 positions: there the library takes most of its time to bring the
# kernel into its own order. From 32x32 on, that is little, and the products of columns are slower.
_POSITIONS = 256
_KERNEL = 2**22
# Images, kernels and results as all networks here have them.
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """As jax.lax.conv_general_dilated of images (b, h, w, c), for nnx.Conv.

    On a CPU, small images with large kernels are one product of matrices.
    """
    library = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    b, h, w, _ = jax.eval_shape(library, x, kernel).shape
    dilations = *options["lhs_dilation"], *options["rhs_dilation"]
    plain = max(dilations) == options["feature_group_count"] == 1
    if not plain or b * h * w > _POSITIONS or kernel.size < _KERNEL:
        return library(x, kernel)
    columns = functools.partial(_convolve_columns, strides=strides, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=columns, default=library)


def _convolve_columns(
    x: Array, kernel: Array, *, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Array:
    """The windows of all positions as rows, times the kernel as it lies in memory."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    size = kernel.shape[:2]
    height, width = (
        (side - k) // stride + 1
        for side, k, stride in zip(x.shape[1:3], size, strides, strict=True)
    )
    windows = [
        x[:, i : i + (height - 1) * strides[0] + 1 : strides[0]][
            :, :, j : j + (width - 1) * strides[1] + 1 : strides[1]
        ]
        for i in range(size[0])
        for j in range(size[1])
    ]
    rows = jnp.concatenate(windows, axis=-1).reshape(-1, kernel[..., 0].size)
    out = rows @ kernel.reshape(-1, kernel.shape[-1])
    return out.reshape(x.shape[0], height, width, -1)


class UpConv(nnx.Conv):
    """3x3 convolution after nearest-neighbour enlargement: (b, h, w, c_in) -> (b, 2h, 2w, c_out).

    The enlarged image has four kinds of pixels, by row and column even or odd, and the window of
    each sees 2x2 different pixels of the image. Their kernels are sums of the 3x3 kernel's entries;
    less than half of the operations remain, and the enlarged image is never written.
    """

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        if 4 * b * h * w < 25 * self.out_features:  # preparing the kernels would cost more
            x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
            return super().__call__(x.reshape(b, 2 * h, 2 * w, c))
        x = x.astype(self.dtype)
        kernel = self.kernel[...]
        kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        # As a convolution of the image with zeros put between its pixels: 4x4.
        for axis in (0, 1):
            before, after = ([(0, 0)] * 4, [(0, 0)] * 4)
            before[axis], after[axis] = (1, 0), (0, 1)
            kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
        # XLA leaves a convolution among zeros to cuDNN and to TPUs; on a CPU it is slow.
        out = jax.lax.platform_dependent(
            x, kernel.astype(x.dtype), cpu=_convolve_phases, default=_convolve_among_zeros
        )
        return add_bias(out, value(self.bias))


def add_bias(x: Array, bias: Array) -> Array:
    """x (..., c) + bias (c,), in the dtype of x."""
    return x + bias.astype(x.dtype).reshape(*[1] * (x.ndim - 1), -1)


def _convolve_among_zeros(x: Array, kernel: Array) -> Array:
    # Written as cuDNN knows it: the gradient of a convolution of stride 2.
    return jax.lax.conv_transpose(
        x,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (2, 2),
        "SAME",
        dimension_numbers=DIMENSIONS,
        transpose_kernel=True,
    )


def _convolve_phases(x: Array, kernel: Array) -> Array:
    b, h, w, _ = x.shape
    phases = [
        jax.lax.conv_general_dilated(
            x,
            kernel[row::2, column::2],
            (1, 1),
            ((1 - row, row), (1 - column, column)),
            dimension_numbers=DIMENSIONS,
        )
        for row in (0, 1)
        for column in (0, 1)
    ]
    out = jnp.stack(phases, axis=3).reshape(b, h, w, 2, 2, -1)
    return out.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)


def value(param: nnx.Param | None) -> Array:
    """The array of a parameter that a layer may lack, in general."""
    assert param is not None
    return param[...]
