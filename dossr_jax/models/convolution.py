"""Convolution of few positions by large kernels, which XLA's own is slow at on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# SD 2.1's UNet at 8x8 and 16x16 positions: there the library takes most of its time to bring the
# kernel into its own order. From 32x32 on, that is little, and the products of columns are slower.
_POSITIONS = 256
_KERNEL = 2**22


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
