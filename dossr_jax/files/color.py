"""Colours of a photo as networks know them, and back into the photo's own colour space.

Networks are trained on sRGB. A photo in another space is converted to one with the tone curve of
sRGB, in 16 bits, and its result converted back. The space has the primaries of sRGB if all of the
photo's colours lie in it, else those of a wider one, so that nothing is clipped.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
from PIL import ImageCms

from dossr_jax.files.photo import Photo

_D50, _D65 = (0.3457, 0.3585), (0.3127, 0.3290)
_REC2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
_PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
_OUTSIDE = 0.002  # of [0, 1]: what rounding does
_BAND = 2**20  # pixels that are converted together


@functools.cache
def srgb() -> bytes:
    """The ICC profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@functools.cache
def _wide(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> bytes:
    """A profile with other primaries and the tone curve of sRGB."""
    x = np.linspace(0, 1, 4096)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
    points = [value for point in primaries for value in (*point, 1.0)]
    return imagecodecs.cms_profile(
        "rgb", whitepoint=[*white, 1.0], primaries=points, transferfunction=curve
    )


def space_of(profile: bytes) -> str:
    """The colour space of an ICC profile: "RGB", "GRAY", "CMYK", ...; "" if it is damaged."""
    try:
        opened: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return opened.profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return ""


@dataclasses.dataclass(frozen=True)
class Working:
    """The space in which a photo is restored.

    Attributes:
      own: the photo's profile; None where its colours are those of sRGB.
      space: that of the restoration. grey: whether the photo has one channel of colour.
    """

    own: bytes | None
    space: bytes
    grey: bool

    def to_own(self, colors: np.ndarray, bits: int) -> np.ndarray:
        """Restored RGB, uint8 or uint16 (h, w, 3), as the photo has it: (h, w, 1 or 3)."""
        if self.own is None:
            result = colors[..., :1] if self.grey else colors
            return requantize(result, bits)
        out = np.empty((*colors.shape[:2], 1 if self.grey else 3), f"uint{bits}")
        for rows in _bands(colors):
            band = _transform(_as_float(colors[rows]), self.space, self.own, to_grey=self.grey)
            out[rows] = _as_levels(band.reshape(out[rows].shape), bits)
        return out


def to_working(photo: Photo) -> tuple[np.ndarray, Working]:
    """The colours of a photo as RGB for the networks, uint8 or uint16 (h, w, 3), and their space.

    8 bits stay 8 bits where nothing is to be converted. A grey photo has three equal channels.
    """
    grey = photo.colors.shape[2] == 1
    if photo.profile is None or is_srgb(photo.profile, grey):
        return np.repeat(photo.colors, 3 if grey else 1, axis=-1), Working(None, srgb(), grey)
    spaces = srgb(), _wide(_REC2020, _D65), _wide(_PROPHOTO, _D50)
    for space in spaces:
        out = np.empty((*photo.colors.shape[:2], 3), np.uint16)
        inside = True
        for rows in _bands(photo.colors):
            band = _transform(_as_float(photo.colors[rows]), photo.profile, space, from_grey=grey)
            inside = inside and -_OUTSIDE <= band.min() and band.max() <= 1 + _OUTSIDE
            if not (inside or space is spaces[-1]):
                break
            if grey:
                band = np.repeat(band[..., 1:2], 3, axis=-1)
            out[rows] = _as_levels(band, 16)
        else:
            return out, Working(photo.profile, space, grey)
    raise AssertionError("the widest space takes everything")


def to_srgb(colors: np.ndarray, profile: bytes | None) -> np.ndarray:
    """uint8 or uint16 (h, w, 1 or 3) of a profile as sRGB, (h, w, 3) of the same dtype."""
    grey = colors.shape[2] == 1
    if profile is None or is_srgb(profile, grey):
        return np.repeat(colors, 3 if grey else 1, axis=-1)
    out = np.empty((*colors.shape[:2], 3), colors.dtype)
    for rows in _bands(colors):
        band = _transform(_as_float(colors[rows]), profile, srgb(), from_grey=grey)
        if grey:
            band = np.repeat(band[..., 1:2], 3, axis=-1)
        out[rows] = _as_levels(band, 8 * colors.itemsize)
    return out


@functools.lru_cache(maxsize=64)
def directions(profile: bytes, grey: bool) -> tuple[bool, bool]:
    """Whether colours can be converted from a profile, and to it: scanners' profiles lack that."""
    own, rgb = np.zeros((1, 1, 1 if grey else 3), np.float32), np.zeros((1, 1, 3), np.float32)
    possible = []
    for convert in (
        functools.partial(_transform, own, profile, srgb(), from_grey=grey),
        functools.partial(_transform, rgb, srgb(), profile, to_grey=grey),
    ):
        try:
            convert()
            possible.append(True)
        except Exception:  # LittleCMS says in many ways that it cannot.
            possible.append(False)
    return possible[0], possible[1]


@functools.lru_cache(maxsize=64)
def is_srgb(profile: bytes, grey: bool) -> bool:
    """Whether a profile's colours are those of sRGB to half a level of 255."""
    levels = np.linspace(0, 1, 9 if not grey else 256, dtype=np.float32)
    if grey:
        colors = levels[None, :, None]
        want = np.repeat(colors, 3, axis=-1)
    else:
        colors = want = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    found = _transform(colors, profile, srgb(), from_grey=grey)
    return bool(np.abs(found - want).max() < 0.5 / 255)


def _transform(
    colors: np.ndarray, source: bytes, target: bytes, *, from_grey: bool = False, to_grey=False
) -> np.ndarray:
    """Float32 (h, w, c) through two profiles, relative colorimetric; not clipped."""
    result = imagecodecs.cms_transform(
        np.ascontiguousarray(colors[..., 0] if from_grey else colors),
        source,
        target,
        colorspace="gray" if from_grey else "rgb",
        outcolorspace="gray" if to_grey else "rgb",
        outdtype="float32",
        intent=int(imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC),
    )
    return np.nan_to_num(result)


def _bands(image: np.ndarray) -> Iterator[slice]:
    """Rows in pieces that bound the memory of floats."""
    step = max(1, _BAND // image.shape[1])
    return (slice(start, start + step) for start in range(0, image.shape[0], step))


def _as_float(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / np.iinfo(levels.dtype).max


def _as_levels(values: np.ndarray, bits: int) -> np.ndarray:
    most = 2**bits - 1
    return np.round(np.clip(values, 0, 1) * most).astype(f"uint{bits}")


def lay_on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (h, w, c) seen through alpha (h, w) on white, of the same dtype, uint8 or uint16."""
    most = np.iinfo(colors.dtype).max
    share = alpha[..., None].astype(np.float64) / most
    return np.round(colors * share + most * (1 - share)).astype(colors.dtype)


def requantize(levels: np.ndarray, bits: int) -> np.ndarray:
    """The same levels with 8 or 16 bits."""
    if 8 * levels.itemsize == bits:
        return levels
    if bits == 16:
        return levels.astype(np.uint16) * 257
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
