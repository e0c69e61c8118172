"""Stored masks of shifted windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from dossr_jax.models.windows import region_mask


def shifted_mask(stored: np.ndarray, regions: Callable[[int, int, int], np.ndarray]) -> np.ndarray:
    """Our mask for the map that a stored one (windows, n, n) is of.

    Names do not tell the map's sides: of all maps with as many windows it is the one that fits
    best.

    Args:
      regions: (height, width, window) -> labels, as in dossr_jax.models.windows.
    """
    count, window = len(stored), math.isqrt(stored.shape[1])
    masks = [
        np.asarray(
            region_mask(
                jnp.asarray(regions(rows * window, count // rows * window, window)), jnp.float32
            )
        )
        for rows in range(1, count + 1)
        if count % rows == 0
    ]
    return min(masks, key=lambda mask: np.abs(mask - stored).sum())
