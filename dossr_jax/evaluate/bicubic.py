"""MATLAB's bicubic `imresize`, the one that SR benchmarks are made and measured with.

Keys' kernel with a = -0.5; where the image shrinks, the kernel is widened by the factor
(antialiasing); beyond its edges the image is mirrored, edge pixels repeated.
"""

from __future__ import annotations

import functools
import math
import operator

import numpy as np


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """An image (h, w, ...) scaled, float64 (ceil(scale h), ceil(scale w), ...), not clipped."""
    return _along(_along(image.astype(np.float64), scale, 0), scale, 1)


def resize_uint8(image: np.ndarray, scale: float) -> np.ndarray:
    """As :func:`resize`, of uint8: like MATLAB, rounded (half up) and clipped after either axis."""
    for axis in (0, 1):
        scaled = _along(image.astype(np.float64), scale, axis)
        image = np.floor(np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)
    return image


def _along(image: np.ndarray, scale: float, axis: int) -> np.ndarray:
    size = image.shape[axis]
    stretch = max(1.0, 1 / scale)
    # In units of inputs, pixel centres at whole numbers.
    centre = (np.arange(math.ceil(scale * size)) + 0.5) / scale - 0.5
    taps = math.ceil(4 * stretch) + 1
    at = np.floor(centre - 2 * stretch).astype(np.int64)[:, None] + 1 + np.arange(taps)
    weights = _cubic((at - centre[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    at %= 2 * size
    at = np.minimum(at, 2 * size - 1 - at)
    shape = [-1 if a == axis else 1 for a in range(image.ndim)]
    terms = [
        weights[:, tap].reshape(shape) * np.take(image, at[:, tap], axis=axis)
        for tap in range(taps)
    ]
    return functools.reduce(operator.add, terms)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
