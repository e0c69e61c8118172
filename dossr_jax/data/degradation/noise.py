"""Gaussian and Poisson noise at a fixed cost per pixel, in colour or grey.

Random bits are a hash of the pixel's place and a seed, so that a pixel's draw depends neither on
the canvas nor on the batch, and is computed where it is used instead of being stored: 20 times
cheaper on a CPU than `jax.random.bits`. pcg4d: Jarzynski and Olano, Hash Functions for GPU
Rendering, JCGT 9(3), 2020; docs/degradation.md says how it was tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dossr_jax.data.degradation.arithmetic import add_up

NONE, GAUSSIAN, POISSON = range(3)

_LUMA = (0.2989, 0.587, 0.114)
# Poisson rates below this are summed over their probabilities, this many of which matter.
_SMALL_RATE = 4.0
_SMALL_COUNTS = 15


class Noise(NamedTuple):
    """One noise; all traced."""

    kind: jax.Array  # int32: NONE, GAUSSIAN or POISSON
    strength: jax.Array  # of Gaussian noise in 8-bit levels, of Poisson noise a factor
    grey: jax.Array  # bool: the same in all channels
    seed: jax.Array  # (2,) uint32


Levels = Callable[[jax.Array], jax.Array]


def add_noise(image: jax.Array, valid: jax.Array, noise: Noise, levels: Levels) -> jax.Array:
    """An image with noise, clipped.

    Args:
      image: (3, h, w) float32, of which [:, :valid[0], :valid[1]] is image.
      valid: (2,) int32.
      noise: what to add.
      levels: `levels_scatter` or `levels_reduce`.

    Returns:
      (3, h, w) float32 in [0, 1].
    """

    def gaussian(planes: jax.Array) -> jax.Array:
        return normal(uniform(noise.seed, planes.shape)) * noise.strength / 255

    def poisson(planes: jax.Array) -> jax.Array:
        clean, rate, full = poisson_rate(planes, valid, levels)
        counts = poisson_counts(rate, uniform(noise.seed, planes.shape))
        return (counts / full - clean) * noise.strength

    luma = add_up(m * image[c] for c, m in enumerate(_LUMA))[None]
    # Grey noise is drawn for one plane: a third of the work.
    added = [
        lambda draw=draw, planes=planes: jnp.clip(image + draw(planes), 0, 1)
        for draw in (gaussian, poisson)
        for planes in (image, luma)
    ]
    which = jnp.where(noise.kind == NONE, 0, 2 * noise.kind - 1 + noise.grey)
    return lax.switch(which, [lambda: jnp.clip(image, 0, 1), *added])


def poisson_rate(
    planes: jax.Array, valid: jax.Array, levels: Levels
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Real-ESRGAN's rates: as many photons at full scale as the image has levels.

    Args:
      planes: (3, h, w) in [0, 1], or for grey noise the luma (1, h, w).

    Returns:
      The planes rounded to 8 bit; rates of the photon counts, both of their shape; and the rate
      of full scale, a power of two from 1 to 256.
    """
    level = jnp.clip(jnp.round(planes * 255), 0, 255).astype(jnp.int32)
    height, width = planes.shape[1:]
    inside = (jnp.arange(height) < valid[0])[:, None] & (jnp.arange(width) < valid[1])[None]
    count = levels(jnp.where(inside[None], level, 256))
    full = (1 << (32 - lax.clz(count - 1))).astype(jnp.float32)
    clean = level / 255
    return clean, clean * full, full


def levels_scatter(level: jax.Array) -> jax.Array:
    """How many of the levels 0 to 255 occur among integers from 0 to 256; quick on CPUs alone."""
    found = jnp.zeros(257, bool).at[level.ravel()].set(True, mode="promise_in_bounds")
    return jnp.sum(found[:256].astype(jnp.int32))


def levels_reduce(level: jax.Array) -> jax.Array:
    """As `levels_scatter`, from 256 bits in 8 words; quick on accelerators alone."""
    words = np.arange(8).reshape(8, *(1,) * level.ndim)
    bit = jnp.uint32(1) << (level & 31).astype(jnp.uint32)
    masks = jnp.where((level >> 5)[None] == words, bit[None], jnp.uint32(0))
    found = lax.reduce_or(masks, range(1, masks.ndim))
    return jnp.sum(lax.population_count(found).astype(jnp.int32))


def uniform(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform draws of a seed (2,) uint32 for the pixels of (c, h, w), inside (0, 1)."""
    c, y, x = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    # The channel goes into a word of the seed, an odd step apart. One word of the four is used:
    # taking three, for the channels, would need them stacked, which XLA does not fuse well.
    words = x, y, seed[0] + c * np.uint32(0x9E3779B9), jnp.broadcast_to(seed[1], shape)
    words = _stir([word * np.uint32(1664525) + np.uint32(1013904223) for word in words])
    return uniform_from_bits(_stir([word ^ (word >> 16) for word in words])[3])


def uniform_from_bits(bits: jax.Array) -> jax.Array:
    """Uniform draws from uint32: multiples of 2^-23 plus half of that, so never 0 or 1.

    Float32 holds each of them exactly.
    """
    return ((bits >> 9).astype(jnp.float32) + 0.5) * np.float32(2.0**-23)


def normal(u: jax.Array) -> jax.Array:
    """Standard normal quantile of u."""
    return np.float32(np.sqrt(2)) * lax.erf_inv(2 * u - 1)


def poisson_counts(rate: jax.Array, u: jax.Array) -> jax.Array:
    """Poisson quantile of u at a rate from 0 to some hundreds, elementwise.

    Small rates compare u with the summed probabilities. Others round down the Cornish-Fisher
    expansion about the normal quantile w, with the terms of Giles, Algorithm 955, ACM TOMS 42(1),
    2016: the distribution is off by 7e-4 (total variation) at the worst, where it takes over.

    Returns:
      Whole numbers in float32.
    """
    small = jnp.minimum(rate, _SMALL_RATE)
    probability = total = jnp.exp(-small)
    count = jnp.zeros_like(rate)
    for k in range(1, _SMALL_COUNTS + 1):
        count = count + (u > total).astype(rate.dtype)
        probability = probability * small * np.float32(1 / k)
        total = total + probability
    large = jnp.maximum(rate, _SMALL_RATE)
    w, root = normal(u), jnp.sqrt(large)
    w2 = w * w
    expansion = (
        large
        + root * w
        + (1 / 3 + w2 / 6)
        - w * (1 / 36 + w2 / 72) / root
        + (-8 / 405 + w2 * (7 / 810 + w2 / 270)) / large
    )
    return jnp.where(rate < _SMALL_RATE, count, jnp.maximum(jnp.floor(expansion), 0))


def _stir(words: list[jax.Array]) -> tuple[jax.Array, ...]:
    x, y, z, w = words
    x = x + y * w
    y = y + z * x
    z = z + x * y
    return x, y, z, w + y * z
