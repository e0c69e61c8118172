"""NIQE: how far an image is from undistorted photos, without a reference.

Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal
Processing Letters, 2013. Every block of 96x96 pixels, and the same part of the image at half its
size, gives 18 features: parameters of generalised Gaussians fitted to the locally normalised
luminance and to products of its neighbours. NIQE is the distance of the blocks' distribution from
that of undistorted photos, both taken as Gaussian.

The parameters of undistorted photos are those of the authors' release; so are the details: Y
rounded to whole numbers, edges repeated, MATLAB's bicubic for the half size, generalised Gaussians
from a grid of shapes in steps of 0.001.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax.evaluate import bicubic
from dossr_jax.evaluate.tiles import on_host

BLOCK = 96
# Blocks that run together; the last batch is filled up, so that all images share a program.
_BATCH = 16
_HALO = 3
_SIGMA = 7 / 6
_FLAT = 1e-5  # levels: above the rounding of float32, in which others compute
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


def niqe(luma: np.ndarray) -> float:
    """NIQE of a luminance image, float (h, w) from 16 to 235, with two blocks of 96x96 or more.

    In float64. Lower is better; photos as they come from a camera have 2 to 5;
    nan where all blocks but one are flat.
    """
    height, width = (side - side % BLOCK for side in luma.shape)
    image = np.round(luma[:height, :width]).astype(np.float64)
    # MATLAB resizes values in [0, 1] here, which is the same but for rounding.
    images = (image, bicubic.resize(image, 0.5))
    with on_host():
        features = np.concatenate([_features_of(x, BLOCK >> i) for i, x in enumerate(images)], 1)
    whole = whole_rows(features)
    if len(whole) < 2:
        return math.nan
    return distance(np.nanmean(features, axis=0), np.cov(whole, rowvar=False))


def whole_rows(features: np.ndarray) -> np.ndarray:
    """Features of the blocks that have all of them: a flat block has no fit, and leaves gaps."""
    return features[~np.isnan(features).any(axis=1)]


def distance(mean: np.ndarray, covariance: np.ndarray) -> float:
    """From undistorted photos, of features with this mean (36,) and covariance (36, 36)."""
    natural_mean, natural_covariance = natural()
    difference = natural_mean - mean
    inverse = np.linalg.pinv((natural_covariance + covariance) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


@functools.cache
def natural() -> tuple[np.ndarray, np.ndarray]:
    """Mean (36,) and covariance (36, 36) of the features of undistorted photos."""
    with np.load(str(resources.files("dossr_jax") / "assets" / "niqe.npz")) as arrays:
        return arrays["mean"], arrays["covariance"]


def _features_of(image: np.ndarray, side: int) -> np.ndarray:
    """Features (n, 18) of the blocks of an image whose sides are multiples of the block's."""
    padded = np.pad(image, _HALO, mode="edge")
    window = side + 2 * _HALO
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (window, window))[::side, ::side]
    return in_batches(block_features, blocks.reshape(-1, window, window))


def in_batches(features: Callable[[np.ndarray], Array], blocks: np.ndarray) -> np.ndarray:
    """Features (n, 18) of blocks (n, h, w) in batches of one size."""
    count = len(blocks)
    blocks = np.pad(blocks, ((0, -count % _BATCH), (0, 0), (0, 0)))
    parts = [features(part) for part in np.split(blocks, len(blocks) // _BATCH)]
    return np.concatenate([np.asarray(part) for part in parts])[:count]


@jax.jit
def block_features(blocks: Array) -> Array:
    """Features of blocks with 3 pixels around them, (n, s + 6, s + 6) -> (n, 18).

    nan where a block is flat.
    """
    return fitted_features(_normalise(blocks))


@jax.jit
def fitted_features(normalised: Array) -> Array:
    """Features of normalised blocks, (n, s, s) -> (n, 18); nan where a block is flat."""
    shape, left, right, _ = _fit(normalised)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right, ratio = _fit(normalised * jnp.roll(normalised, shift, axis=(1, 2)))
        features += [shape, (right - left) * ratio, left, right]
    return jnp.stack(features, axis=-1)


def _normalise(blocks: Array) -> Array:
    """Deviation from the local mean by the local standard deviation plus 1: halo gone."""
    offsets = np.arange(-_HALO, _HALO + 1)
    window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window /= window.sum()

    def mean(x: Array) -> Array:
        for axis in (1, 2):
            size = x.shape[axis] - 2 * _HALO
            shifted = [
                float(weight) * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
                for i, weight in enumerate(window)
            ]
            x = functools.reduce(operator.add, shifted)
        return x

    local = mean(blocks)
    difference = blocks[:, _HALO:-_HALO, _HALO:-_HALO] - local
    # Of flat areas nothing but rounding is left, which must not decide on what side they count.
    difference = jnp.where(jnp.abs(difference) < _FLAT, 0, difference)
    deviation = jnp.sqrt(jnp.abs(mean(blocks**2) - local**2))
    return difference / (deviation + 1)


@functools.cache
def _shapes() -> tuple[np.ndarray, ...]:
    """Shapes a of generalised Gaussians, and by shape E|x|^2 / E x^2, scale / std and a ratio.

    With G the gamma function: G(2/a)^2 / (G(1/a) G(3/a)), sqrt(G(1/a) / G(3/a)), G(2/a) / G(1/a).
    """
    shapes = np.arange(0.2, 10.001, 0.001)
    g1, g2, g3 = (np.array([math.lgamma(n / a) for a in shapes]) for n in (1, 2, 3))
    return shapes, np.exp(2 * g2 - g1 - g3), np.exp((g1 - g3) / 2), np.exp(g2 - g1)


def _fit(x: Array) -> tuple[Array, Array, Array, Array]:
    """Asymmetric generalised Gaussians of samples (n, h, w) by moments.

    Returns:
      (n,) each: shape, scales of the left and the right side, and G(2/shape) / G(1/shape).
    """
    shapes, moments, scales, ratios = (jnp.asarray(a, x.dtype) for a in _shapes())

    def deviation(side: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.where(side, x**2, 0), (1, 2)) / jnp.sum(side, (1, 2)))

    left, right = deviation(x < 0), deviation(x > 0)
    skew = left / right
    moment = jnp.mean(jnp.abs(x), (1, 2)) ** 2 / jnp.mean(x**2, (1, 2))
    moment *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # The moment grows with the shape: the nearest is found by the middles between neighbours.
    nearest = jnp.searchsorted((moments[1:] + moments[:-1]) / 2, moment)
    nearest = jnp.where(jnp.isnan(moment), 0, nearest)
    scale = scales[nearest]
    return shapes[nearest], scale * left, scale * right, ratios[nearest]
