"""How close an image is to its reference: PSNR and SSIM, one number an image, pure jnp.

Images are NHWC floats. Results agree with scikit-image to 1e-6 in float64; in float32 to 1e-4 dB
(PSNR) and 1e-5 (SSIM).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# BT.601 luma of RGB in [0, 1], in 8-bit video range.
LUMA = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0
WINDOW = 11  # side of SSIM's Gaussian window
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def luma(image: Array) -> Array:
    """Y of RGB images (b, h, w, 3) in [0, 1]: (b, h, w, 1) from 16 to 235, not rounded.

    The channel that super-resolution papers measure; its data range is 255.
    """
    weights = jnp.asarray(LUMA, image.dtype)[None, None, None]
    return LUMA_OFFSET + jnp.sum(image * weights, axis=-1, keepdims=True)


def psnr(image: Array, reference: Array, *, data_range: float) -> Array:
    """Peak signal-to-noise ratio in dB of images (b, h, w, c), (b,); inf for equal ones."""
    error = jnp.mean(jnp.square(image - reference), axis=(1, 2, 3))
    return 10 * jnp.log10(data_range**2 / error)


def ssim(image: Array, reference: Array, *, data_range: float) -> Array:
    """Structural similarity of images (b, h, w, c), the mean over :func:`ssim_map`, (b,)."""
    return jnp.mean(ssim_map(image, reference, data_range=data_range), axis=(1, 2, 3))


def ssim_map(image: Array, reference: Array, *, data_range: float) -> Array:
    """Structural similarity at every place where the window fits, (b, h - 10, w - 10, c).

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004:
    a Gaussian window of 11x11 with deviation 1.5, population statistics, K1 = 0.01 and K2 = 0.03.

    Raises:
      ValueError: the images are smaller than the window.
    """
    if min(image.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW}x{WINDOW} or more, not {image.shape}")
    # Variances do not depend on the level: without it, less cancels in float32.
    level = jnp.mean(reference, axis=(1, 2), keepdims=True)
    x, y = image - level, reference - level
    mean_x, mean_y, xx, yy, xy = (_window_mean(a) for a in (x, y, x * x, y * y, x * y))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + level, mean_y + level
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))


def _window_mean(x: Array) -> Array:
    """Gaussian means (b, h - 10, w - 10, c) around every place where the window fits."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    # Sums of slices: a convolution would run at the reduced precision of an accelerator.
    for axis in (1, 2):
        size = x.shape[axis] - WINDOW + 1
        x = sum(
            float(weight) * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
            for i, weight in enumerate(weights)
        )
    return x
