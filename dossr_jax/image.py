"""Operations on images: colour fix, padding, quantisation, and noise tied to positions.

Images are NHWC floats in [0, 1]. Several images share one canvas shape `(b, height, width, c)`,
each occupying its own top-left part: `size` is int32 `(b, 2)`, traced, with rows `(h, w)` from 1
up to the canvas. What a canvas holds outside that part, NaN included, has no influence inside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Key, Shaped

from dossr_jax.config.sampler import ColorFix

Image = Float[Array, "b h w c"]
Sizes = Int[Array, "b 2"]

_DILATIONS = (1, 2, 4, 8, 16)
_ADAIN_EPS = 1e-5
_COARSE = 4  # pixels
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def wavelet_fix(image: Image, reference: Image, size: Sizes) -> Image:
    """Replace the low band of `image` by that of `reference`, keeping its five high bands.

    `image` and `reference`: (b, h, w, c) of one dtype, float32 or float64; `size`: (b, 2).
    Returns (b, h, w, c), meaningful inside the valid part only.
    """
    # The high bands telescope to image - low(image), and the filter is linear: one pass does.
    return image + _low_band(reference - image, size, _DILATIONS)


def adain_fix(image: Image, reference: Image, size: Sizes) -> Image:
    """Give every channel of `image` the mean and the standard deviation of `reference`.

    Statistics are over the valid part, the deviation unbiased with 1e-5 added to the variance.
    Shapes, dtypes and result as :func:`wavelet_fix`.
    """
    return match_moments(image, moments(image, size), moments(reference, size))


def color_fix(
    kind: ColorFix, image: Image, reference: Image, size: Sizes
) -> Float[Array, "b h w c"]:
    """Apply the colour fix named `kind`; "none" returns `image`. Unknown names: ValueError.

    "residual" is "wavelet" for an `image` without the autoencoder's error, as restore makes it.
    """
    match kind:
        case "wavelet" | "residual":
            return wavelet_fix(image, reference, size)
        case "adain":
            return adain_fix(image, reference, size)
        case "none":
            return image
    raise ValueError(f"colour fix is one of {', '.join(get_args(ColorFix))}, not {kind!r}")


def _low_band(x: Array, size: Array, dilations: Sequence[int]) -> Array:
    """Filter with [1 2 1]x[1 2 1]/16 at every dilation, the valid part's edges continued."""

    # A loop over the levels: unrolled, XLA fuses them and computes shared values over and over
    # (on a CPU ten times slower to compile and to run).
    def level(x: Array, dilation: Array) -> tuple[Array, None]:
        for axis in (1, 2):
            x = jax.vmap(_blur, (0, 0, None, None))(x, size[:, axis - 1], dilation, axis - 1)
        return x, None

    return jax.lax.scan(level, x, jnp.asarray(dilations, jnp.int32))[0]


def _blur(x: Array, length: Array, dilation: Array, axis: int) -> Array:
    """Filter x (h, w, c) with [1 2 1]/4 along `axis`, whose first `length` samples are valid."""
    here = jnp.arange(x.shape[axis], dtype=jnp.int32)
    before, after = (
        jnp.take(x, jnp.clip(here + step, 0, length - 1), axis=axis, mode="clip")
        for step in (-dilation, dilation)
    )
    return 0.25 * (before + after) + 0.5 * x


def moments(x: Image, size: Sizes) -> Float[Array, "b 2 c"]:
    """Mean, and deviation as :func:`adain_fix` has it, of every channel over the valid part."""
    valid = valid_part(x, size)
    count = jnp.prod(size, axis=1).astype(x.dtype)[:, None, None, None]
    mean = jnp.sum(jnp.where(valid, x, 0), axis=(1, 2), keepdims=True) / count
    square = jnp.where(valid, (x - mean) ** 2, 0)
    # A single pixel has no deviation: 0 here, where the unbiased formula would say 0 / 0.
    variance = jnp.sum(square, axis=(1, 2), keepdims=True) / jnp.maximum(count - 1, 1)
    return jnp.concatenate([mean, jnp.sqrt(variance + _ADAIN_EPS)], axis=1)[:, :, 0]


def match_moments(
    image: Image, own: Float[Array, "b 2 c"], wanted: Float[Array, "b 2 c"]
) -> Float[Array, "b h w c"]:
    """Images (b, h, w, c) whose channels have the moments `own` with `wanted` ones."""
    mean, std, mean_wanted, std_wanted = (
        x[:, i, None, None] for x in (own, wanted) for i in (0, 1)
    )
    return (image - mean) / std * std_wanted + mean_wanted


def merge_moments(
    parts: Float[np.ndarray, "*n 2 c"], pixels: Sequence[int]
) -> Float[np.ndarray, "*_ 2 c"]:
    """:func:`moments` (n, ..., 2, c) of parts of one image, each of so many pixels, as its own."""
    count, weights = sum(pixels), np.array(pixels, np.float64)
    weights = weights.reshape(-1, *[1] * (parts.ndim - 2))
    means, stds = np.moveaxis(parts.astype(np.float64), -2, 0)
    mean = (weights * means).sum(0) / count
    squares = (weights - 1) * (stds**2 - _ADAIN_EPS) + weights * (means - mean) ** 2
    std = np.sqrt(squares.sum(0) / max(count - 1, 1) + _ADAIN_EPS)
    return np.stack([mean, std], axis=-2).astype(np.float32)


def valid_part(x: Image, size: Sizes) -> Bool[Array, "b h w 1"]:
    """Where the canvases x (b, h, w, c) hold the images of `size` (b, 2), as (b, h, w, 1)."""
    rows = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :, None, None]
    cols = jnp.arange(x.shape[2], dtype=jnp.int32)[None, None, :, None]
    sizes = size[:, :, None, None, None]
    return (rows < sizes[:, 0]) & (cols < sizes[:, 1])


def coarse_fix(
    image: Image, lr: Float[Array, "b lr_h lr_w c"], size: Sizes
) -> Float[Array, "b h w c"]:
    """Give `image` the waves of `lr` that are much longer than 64 pixels of `image`.

    Those of 64 pixels keep to `image`, as does nearly all that is shorter; of those of 128 two
    thirds are replaced. `image` (b, kh, kw, c) for k 1, 2 or 4 and `lr` (b, h, w, c) of one dtype,
    float32 or float64; `size` (b, 2) of `lr`. Returns (b, kh, kw, c), meaningful inside the valid
    part only.
    """
    b, h, w, c = lr.shape
    k = image.shape[1] // h
    difference = lr - jnp.mean(image.reshape(b, h, k, w, k, c), axis=(2, 4))
    # Blocks of 4 pixels of `image`, whatever its size.
    coarse, coarse_size = _block_means(difference, size, _COARSE // k)
    rest = coarse
    for _ in range(2):
        rest = rest - _low_band(rest, coarse_size, (1, 2, 4, 8))
    change = jnp.repeat(jnp.repeat(coarse - rest, _COARSE, axis=1), _COARSE, axis=2)
    # They become a quadratic spline.
    change = change[:, : image.shape[1], : image.shape[2]]
    return image + _low_band(change, k * size, (1, 2))


def _block_means(x: Array, size: Array, side: int) -> tuple[Array, Array]:
    """Of x (b, h, w, c) over the valid pixels of blocks; and the blocks that have any, (b, 2)."""
    if side == 1:
        return x, size
    b, h, w, c = x.shape
    rows, cols = -(-h // side), -(-w // side)
    valid = valid_part(x, size)
    padding = (0, 0), (0, rows * side - h), (0, cols * side - w), (0, 0)

    def sums(x: Array) -> Array:
        return jnp.pad(x, padding).reshape(b, rows, side, cols, side, -1).sum(axis=(2, 4))

    counts = sums(valid.astype(x.dtype))
    return sums(jnp.where(valid, x, 0)) / jnp.maximum(counts, 1), -(-size // side)


def cubic_weights(t: Float[Array, "*shape"], a: float = -0.5) -> tuple[Array, Array, Array, Array]:
    """Keys' cubic at `t` in [0, 1] between the second and third of four samples.

    Weights of the samples, of the shape of `t`. a = -0.5 is Catmull-Rom's, which keeps ramps, and
    Pillow's; a = -0.75 is PyTorch's.
    """

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return a * (((d - 5) * d + 8) * d - 4)

    return far(1 + t), near(t), near(1 - t), far(2 - t)


def enlarge_as_torch(image: Image, factor: int) -> Float[Array, "b _ _ c"]:
    """(b, h, w, c) -> (b, factor h, factor w, c), bicubic as PyTorch's interpolate.

    a = -0.75, the edge continued, without antialiasing and without clipping.
    """
    for axis in (1, 2):
        side = image.shape[axis]
        centre = (jnp.arange(factor * side) + 0.5).astype(image.dtype) / factor - 0.5
        first = jnp.floor(centre)
        shape = [1, 1, 1, 1]
        shape[axis] = factor * side
        parts = []
        for i, weight in enumerate(cubic_weights(centre - first, -0.75)):
            index = jnp.clip(first.astype(jnp.int32) + i - 1, 0, side - 1)
            parts.append(weight.reshape(shape) * jnp.take(image, index, axis=axis))
        image = parts[0] + parts[1] + parts[2] + parts[3]
    return image


def is_grey(image: Shaped[Array, "b h w c"]) -> Bool[Array, " b"]:
    """Whether the channels of every image (b, h, w, c) are the same everywhere."""
    return jnp.all(image == image[..., :1], axis=(1, 2, 3))


def remove_color(image: Image, grey: Bool[Array, " b"]) -> Image:
    """The luma of an RGB image in all three channels, (b, h, w, 3), where `grey` (b,) says so."""
    weights = jnp.array(_LUMA, image.dtype)[None, None, None]
    luma = jnp.sum(image * weights, axis=-1, keepdims=True)
    return jnp.where(grey[:, None, None, None], luma, image)


def pixels_to_levels(
    image: Float[Array, "*shape"], dtype: DTypeLike = jnp.uint8, *, truncate: bool = False
) -> Shaped[Array, "*shape"]:
    """Floats in [0, 1] (clipped) as levels of uint8 or uint16, of the same shape.

    Rounds to nearest; `truncate` drops the fraction, as the published PyTorch release does.
    """
    levels = jnp.clip(image, 0, 1) * jnp.iinfo(dtype).max
    return (jnp.floor(levels) if truncate else jnp.round(levels)).astype(dtype)


def levels_to_pixels(image: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Levels of uint8 or uint16 as float32 in [0, 1]; floats stay as they are."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return image.astype(jnp.float32) / jnp.iinfo(image.dtype).max


def reflect_indices(size: int, length: int) -> Int[np.ndarray, " length"]:
    """Source positions (`length`,) of `size` samples continued by mirroring at their ends.

    The end samples are not repeated; mirroring repeats for any length; one sample stays constant.
    """
    if size < 1:
        raise ValueError(f"cannot reflect {size} samples")
    period = max(2 * (size - 1), 1)
    index = np.arange(length) % period
    return np.minimum(index, period - index) if size > 1 else index


def pad_to(
    image: Shaped[np.ndarray, "h w c"], height: int, width: int
) -> Shaped[np.ndarray, "{height} {width} c"]:
    """Continue `image` (h, w, c), on the host, to (height, width, c) by reflection.

    New rows come below and new columns on the right, in any number. Raises ValueError where the
    image is larger than what is asked for.
    """
    if image.shape[0] > height or image.shape[1] > width:
        raise ValueError(f"cannot pad {image.shape[0]}x{image.shape[1]} to {height}x{width}")
    rows = reflect_indices(image.shape[0], height)
    cols = reflect_indices(image.shape[1], width)
    return image[rows[:, None], cols[None, :]]


def position_noise(
    key: Array,
    height: int,
    width: int,
    channels: int,
    dtype: DTypeLike = jnp.float32,
    origin: Int[Array, " 2"] | None = None,
) -> Float[Array, "{height} {width} {channels}"]:
    """Standard normal noise (height, width, channels), a function of the key and the position.

    The value at (row, col) depends on `key`, row, col and `channels` only: a larger canvas
    extends the noise without changing it, and one that begins at `origin` (row, col), not
    negative, has that part of it. Draws are float32 in every mode and then cast.
    """

    def at_row(row: Array) -> Array:
        row_key = jax.random.fold_in(key, row)
        return jax.vmap(lambda col: jax.random.fold_in(row_key, col))(cols)

    rows = jnp.arange(height, dtype=jnp.uint32)
    cols = jnp.arange(width, dtype=jnp.uint32)
    if origin is not None:
        first = origin.astype(jnp.uint32)
        rows, cols = rows + first[0], cols + first[1]
    draw = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (channels,), jnp.float32)))
    return draw(jax.vmap(at_row)(rows)).astype(dtype)


def batch_position_noise(
    keys: Key[Array, " b"],
    height: int,
    width: int,
    channels: int,
    dtype: DTypeLike = jnp.float32,
    origin: Sizes | None = None,
) -> Float[Array, "b {height} {width} {channels}"]:
    """:func:`position_noise` of every key: keys (b,) to noise (b, height, width, channels)."""
    if origin is None:
        return jax.vmap(lambda key: position_noise(key, height, width, channels, dtype))(keys)
    noise = functools.partial(position_noise, height=height, width=width, channels=channels)
    return jax.vmap(lambda key, at: noise(key, dtype=dtype, origin=at))(keys, origin)
