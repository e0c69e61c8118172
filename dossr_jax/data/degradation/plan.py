"""The random draws for one image: which operations run on it and with what numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dossr_jax.data.degradation import kernels
from dossr_jax.data.degradation import noise as noise_lib
from dossr_jax.data.degradation.arithmetic import add_up
from dossr_jax.data.degradation.holes import Holes, draw_holes
from dossr_jax.data.degradation.noise import Noise
from dossr_jax.data.degradation.presets import BlurOdds, NoiseOdds, Pass, Preset, ResizeOdds
from dossr_jax.data.degradation.resize import Resize

_DRAWS = 26
_HOLES = 1  # purpose of their key


class Blur(NamedTuple):
    """A filter, or none."""

    apply: jax.Array  # bool
    kernel: jax.Array  # (21, 21) float32


class Jpeg(NamedTuple):
    """A JPEG, or none."""

    apply: jax.Array  # bool
    quality: jax.Array


class PassPlan(NamedTuple):
    """One of the two passes."""

    blur: Blur
    resize: Resize
    noise: Noise
    jpeg: Jpeg


class Plan(NamedTuple):
    """Everything that happens to one image."""

    sharpen: jax.Array  # bool
    first: PassPlan
    second: PassPlan
    last_resize: Resize
    sinc: Blur
    jpeg_last: jax.Array  # bool: the last JPEG comes after the last resize and the sinc filter
    holes: Holes | None = None  # of presets that have some


def draw_plan(key: jax.Array, presets: Sequence[Preset], shape: tuple[int, int]) -> Plan:
    """Draw one of the presets uniformly, and all the parameters it leaves open.

    Args:
      key: a JAX key.
      presets: of one scale.
      shape: height and width of the HR image, multiples of that scale.
    """
    # One block of bits, and both passes drawn as one: many small draws take long to compile.
    own_bits, *pass_bits = jax.random.bits(key, (3, _DRAWS))
    draws = iter(noise_lib.uniform_from_bits(own_bits))
    count = len(presets)
    row = jnp.minimum((next(draws) * count).astype(jnp.int32), count - 1)
    preset = jax.tree.map(lambda *values: jnp.array(values, jnp.float32)[row], *presets)
    passes = jax.tree.map(lambda *pair: jnp.stack(pair), preset.first, preset.second)
    hr, lr = np.array(shape), np.array(shape) // presets[0].scale
    drawn = jax.vmap(_pass)(jnp.stack(pass_bits), passes, jnp.asarray(np.stack([hr, lr])))
    first, second = (jax.tree.map(lambda pair, i=i: pair[i], drawn) for i in range(2))
    # The first resize is given a scale factor, the others a size.
    ratio = first.resize.size / second.resize.size
    return Plan(
        sharpen=next(draws) < preset.sharpen_odds,
        first=first,
        second=second._replace(resize=second.resize._replace(step=ratio)),
        last_resize=Resize(
            size=jnp.asarray(lr, jnp.int32),
            step=second.resize.size / lr,
            mode=_choice(draws, preset.second.resize.modes),
        ),
        sinc=Blur(next(draws) < preset.sinc_odds, _sinc(draws, narrow=np.pi / 3)),
        jpeg_last=next(draws) < 0.5,
        holes=_holes(key, presets, preset, (int(lr[0]), int(lr[1]))),
    )


def _holes(
    key: jax.Array, presets: Sequence[Preset], preset: Preset, shape: tuple[int, int]
) -> Holes | None:
    if not any(p.holes.odds for p in presets):
        return None
    return draw_holes(jax.random.fold_in(key, _HOLES), preset.holes, shape)


def _pass(bits: jax.Array, odds: Pass, shape: jax.Array) -> PassPlan:
    """One pass on an image whose resize is to a factor of `shape` (2,)."""
    seed, draws = bits[:2], iter(noise_lib.uniform_from_bits(bits[2:]))
    factor, mode = _resize(draws, odds.resize)
    size = jnp.maximum(jnp.floor(factor * shape).astype(jnp.int32), 1)
    return PassPlan(
        blur=_blur(draws, odds.blur),
        resize=Resize(size, jnp.broadcast_to(1 / factor, (2,)), mode),
        noise=_noise(draws, odds.noise, seed),
        jpeg=Jpeg(next(draws) < odds.jpeg.odds, _between(draws, odds.jpeg.quality)),
    )


Draws = Iterator[jax.Array]


def _between(draws: Draws, bounds: tuple[ArrayLike, ArrayLike]) -> jax.Array:
    low, high = map(jnp.asarray, bounds)
    return low + next(draws) * (high - low)


def _choice(draws: Draws, odds: tuple[Any, ...]) -> jax.Array:
    """Index drawn with these odds."""
    draw = next(draws) * sum(odds)  # which may be a little off one
    edges = itertools.accumulate(odds[:-1])
    return add_up((draw >= edge).astype(jnp.int32) for edge in edges)


def _size(draws: Draws) -> jax.Array:
    """Odd, 7 to 21."""
    return 7 + 2 * jnp.floor(next(draws) * 8).astype(jnp.int32)


def _blur(draws: Draws, odds: BlurOdds) -> Blur:
    kind = _choice(draws, odds.kinds)
    sigma = jnp.stack([_between(draws, odds.sigma) for _ in range(2)])
    angle = _between(draws, (-np.pi, np.pi))
    low, high = (
        jnp.where(kind // 2 == 1, *pair)
        for pair in zip(odds.beta_generalised, odds.beta_plateau, strict=True)
    )
    # Half of the exponents lie below one, half above, for heavy and light tails alike.
    beta = jnp.where(next(draws) < 0.5, _between(draws, (low, 1.0)), _between(draws, (1.0, high)))
    blurred = kernels.blur_kernel(kind, _size(draws), sigma, angle, beta)
    ringing = _sinc(draws, narrow=np.pi / 5)
    kernel = jnp.where(next(draws) < odds.sinc_odds, ringing, blurred)
    return Blur(next(draws) < odds.odds, kernel)


def _sinc(draws: Draws, narrow: float) -> jax.Array:
    """A sinc kernel; from 13 pixels on it may cut off as low as `narrow`, below that at pi/3."""
    size = _size(draws)
    lowest = jnp.where(size < 13, np.pi / 3, narrow)
    return kernels.sinc_kernel(size, _between(draws, (lowest, np.pi)))


def _resize(draws: Draws, odds: ResizeOdds) -> tuple[jax.Array, jax.Array]:
    """Factor and mode."""
    direction = _choice(draws, odds.directions)
    low, high = odds.factor
    up, down = _between(draws, (1.0, high)), _between(draws, (low, 1.0))
    factor = jnp.where(direction == 0, up, jnp.where(direction == 1, down, 1.0))
    return factor, _choice(draws, odds.modes)


def _noise(draws: Draws, odds: NoiseOdds, seed: jax.Array) -> Noise:
    gaussian = next(draws) < odds.gaussian_odds
    strength = jnp.where(gaussian, _between(draws, odds.gaussian), _between(draws, odds.poisson))
    kind = jnp.where(gaussian, noise_lib.GAUSSIAN, noise_lib.POISSON)
    kind = jnp.where(next(draws) < odds.odds, kind, noise_lib.NONE)
    return Noise(kind, strength, next(draws) < odds.grey_odds, seed)
