"""SSIM of an image of any size with one compiled program: cut into tiles of one shape."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax import metrics

_TILE = 256  # places of the window in a tile, along each axis
_HALO = metrics.WINDOW - 1
# Tiles that run together: a small and a larger program do for images of all sizes.
_BATCHES = (1, 4)


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Float64 on the processor, whatever the accelerator: numbers that papers can be held to."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to leave the processor out.
        device = None
    with jax.enable_x64(True), jax.default_device(device):
        yield


def mean_ssim(image: np.ndarray, reference: np.ndarray, *, least: float = -np.inf) -> float:
    """Mean structural similarity of two images (h, w, c) of 11x11 or more and range 255, float64.

    Equal to :func:`dossr_jax.metrics.ssim`; only the order of summation differs. Places whose
    similarity is below `least` count as `least`.
    """
    height, width, channels = image.shape
    places = np.array([height - _HALO, width - _HALO], np.int32)
    corners = [(y, x) for y in range(0, places[0], _TILE) for x in range(0, places[1], _TILE)]
    total = 0.0
    with on_host():
        while corners:
            count = max(b for b in _BATCHES if b == 1 or b <= len(corners))
            part, corners = corners[:count], corners[count:]
            pair = [np.stack([_cut(a, *corner) for corner in part]) for a in (image, reference)]
            left = places - np.array(part, np.int32)
            total += float(_sum(*pair, left, least))
    return total / (int(places.prod()) * channels)


def _cut(image: np.ndarray, top: int, left: int) -> np.ndarray:
    """A tile (266, 266, c) in float64; beyond the image zeros."""
    side = _TILE + _HALO
    part = image[top : top + side, left : left + side].astype(np.float64)
    return np.pad(part, ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)))


@jax.jit
def _sum(image: Array, reference: Array, left: Array, least: float) -> Array:
    """Sum of SSIM over the first `left` (b, 2) rows and columns of places in every tile."""
    similarity = jnp.maximum(metrics.ssim_map(image, reference, data_range=255.0), least)
    at = jnp.arange(_TILE, dtype=left.dtype)[None]
    rows, columns = (at < left[:, axis, None] for axis in (0, 1))
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.sum(jnp.where(inside, similarity, 0.0))
