"""The numbers of the field's tables: pyiqa's arithmetic, without pyiqa.

StableSR, SeeSR, OSEDiff and those after them print what pyiqa gives for `psnr` and `ssim` with
`test_y_channel=True, color_space='ycbcr'`, and for `niqe` as it comes. Each step in which pyiqa
differs from our own metrics, so that digits show it, is repeated here; docs/evaluation.md lists
them. Images are uint8 (h, w, 3), RGB.
"""

from __future__ import annotations

import functools
import math
import operator

import numpy as np
import scipy.ndimage

from dossr_jax import metrics
from dossr_jax.evaluate import niqe as own
from dossr_jax.evaluate.tiles import mean_ssim, on_host

_EPSILON = 1e-8  # what PSNR adds to the squared error of values in [0, 1]
# NIQE's luminance is that of YIQ, from 0 to 255, where all others take that of YCbCr.
_YIQ = (0.299, 0.587, 0.114)
# MATLAB's bicubic for half the size: all weights are exact in float32.
_HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3], np.float32) / np.float32(256)


def psnr_y(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR of Y in dB; 80 for equal images."""
    y, wanted = ((_ycbcr(a) / np.float32(255)).astype(np.float64) for a in (image, reference))
    return -10 * float(np.log10(np.mean((y - wanted) ** 2) + _EPSILON))


def ssim_y(image: np.ndarray, reference: np.ndarray) -> float:
    """SSIM of Y in whole numbers; places where it is negative count as 0. 11x11 pixels or more."""
    y, wanted = (np.round(_ycbcr(a)).astype(np.float64)[..., None] for a in (image, reference))
    return mean_ssim(y, wanted, least=0.0)


def niqe(image: np.ndarray) -> float:
    """NIQE of an image with a block of 96x96 or more; nan where all blocks are flat."""
    height, width = (side - side % own.BLOCK for side in image.shape[:2])
    y = np.round(_weighted(image[:height, :width], _YIQ) * np.float32(255)).astype(np.float64)
    images = y, 255 * _half(y / 255)
    with on_host():
        features = np.concatenate(
            [_features_of(x, own.BLOCK >> i) for i, x in enumerate(images)], axis=1
        )
    whole = own.whole_rows(features)
    if not len(whole):
        return math.nan
    covariance = np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((36, 36))
    return own.distance(np.nanmean(features, axis=0), covariance)


def _ycbcr(image: np.ndarray) -> np.ndarray:
    """Y of YCbCr, float32 (h, w) from 16 to 235."""
    y = _weighted(image, metrics.LUMA) + np.float32(metrics.LUMA_OFFSET)
    return y / np.float32(255) * np.float32(255)


def _weighted(image: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """Weighted sum of the channels in [0, 1] in float32, in which one may be rounded otherwise."""
    parts = image.astype(np.float32) / np.float32(255) * np.array(weights, np.float32)
    return parts[..., 0] + parts[..., 1] + parts[..., 2]


def _half(image: np.ndarray) -> np.ndarray:
    """An image (h, w) at half its size by MATLAB's bicubic, in float32 as pyiqa does it.

    Its rounding is seen in flat areas, where nothing else is left after normalisation.
    """
    image = image.astype(np.float32)
    for _ in range(2):
        padded = np.pad(image, ((3, 3), (0, 0)), mode="symmetric")
        half = len(image) // 2
        parts = [weight * padded[tap::2][:half] for tap, weight in enumerate(_HALVING)]
        image = functools.reduce(operator.add, parts).T
    return image.astype(np.float64)


def _features_of(image: np.ndarray, side: int) -> np.ndarray:
    """Features (n, 18) of the blocks of an image, normalised with a window in float32.

    Its weights do not sum to one, exactly: flat areas are not 0, but to one side of it.
    """
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window = (window / window.sum()).astype(np.float32).astype(np.float64)
    mean, square = (scipy.ndimage.correlate(a, window, mode="nearest") for a in (image, image**2))
    deviation = np.sqrt(np.abs(square - mean**2) + np.finfo(np.float64).eps)
    normalised = (image - mean) / (deviation + 1)
    rows, columns = (length // side for length in image.shape)
    blocks = normalised.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    return own.in_batches(own.fitted_features, blocks)
