"""What the Python API takes as a picture, and the result in the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import Photo, color
from dossr_jax.pipeline.maps import EtaMap, as_map

ImageLike = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | jax.Array
Result = np.ndarray | Image.Image


def is_single(images: Any) -> bool:
    """Whether `images` is one picture, not a sequence of them."""
    return isinstance(images, str | Path | bytes | Image.Image | np.ndarray | jax.Array) or (
        hasattr(images, "read")
    )


def as_photo(image: ImageLike) -> tuple[Photo, Callable[[Photo], Result]]:
    """A picture in any form as a photo, and how its result becomes one of the same form.

    Raises:
      UserError: an unreadable file, or an array of another shape, dtype or range.
    """
    if isinstance(image, Image.Image):
        try:
            return files.to_photo(image), as_pillow
        except Exception as error:  # Pillow's decoders raise almost anything on damaged data.
            reason = " ".join((str(error) or type(error).__name__).split())
            raise UserError(f"damaged image ({reason}); replace it by an intact copy") from error
    if isinstance(image, np.ndarray | jax.Array):
        return _of_array(np.asarray(image))
    return files.read_photo(image), as_array


def as_maps(eta_map: Any, mask: Any, sizes: Sequence[tuple[int, int]]) -> list[EtaMap | None]:
    """The maps of pictures (h, w), given for one or for all, or else a mask.

    Raises:
      UserError: both are given, or not one per picture, or one that does not fit its picture.
    """
    if eta_map is not None and mask is not None:
        raise UserError("eta_map and mask: a mask is a map by itself; give one of them")
    name, given = ("eta_map", eta_map) if mask is None else ("mask", mask)
    sources = [given] * len(sizes) if given is None or is_single(given) else list(given)
    if len(sources) != len(sizes):
        raise UserError(
            f"{name}: {len(sources)} for {len(sizes)} images; give one for all, or one per image"
        )
    return [
        None if source is None else as_map(as_photo(source)[0], name, size, mask=mask is not None)
        for source, size in zip(sources, sizes, strict=True)
    ]


def as_array(photo: Photo) -> np.ndarray:
    """sRGB, uint8 or uint16: (h, w) for a grey photo, (h, w, 2) with alpha; else (h, w, 3 or 4)."""
    colors = photo.colors
    if photo.profile is not None:
        colors = color.to_srgb(colors, photo.profile)[..., : colors.shape[2]]
    pixels = np.concatenate([colors, photo.pixels[..., colors.shape[2] :]], axis=-1)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def as_pillow(photo: Photo) -> Image.Image:
    """An image of Pillow with the photo's mode; profile, EXIF and resolution are in its `info`."""
    pixels = photo.pixels
    if photo.levels is not None:
        pixels = photo.levels.to_numbers(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    metadata = photo.metadata
    found = {
        "icc_profile": photo.profile,
        "exif": metadata.exif and b"Exif\0\0" + metadata.exif,
        "xmp": metadata.xmp,
        "dpi": metadata.dpi,
    }
    image.info |= {key: value for key, value in found.items() if value}
    return image


def _of_array(array: np.ndarray) -> tuple[Photo, Callable[[Photo], np.ndarray]]:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not 1 <= channels <= 4 or 0 in array.shape:
        raise UserError(f"array of shape {array.shape} is no image; give (h, w) or (h, w, 1 to 4)")
    pixels = array.reshape(*array.shape[:2], channels)
    if array.dtype in (np.uint8, np.uint16):
        return Photo(pixels), lambda photo: _shaped(photo.pixels, array.ndim)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"array of {array.dtype}; give uint8, uint16, or floats in [0, 1]")
    floats = pixels.astype(np.float32)
    if not np.isfinite(floats).all():
        raise UserError("array with NaN or infinity; give finite floats in [0, 1]")
    least, most = floats.min(), floats.max()
    if least < -0.5 or most > 1.5:  # what resampling overshoots is clipped
        raise UserError(
            f"floats from {least:g} to {most:g}; give floats in [0, 1], or uint8 for 0 to 255"
        )
    levels = np.round(np.clip(floats, 0, 1) * 65535).astype(np.uint16)

    def as_floats(photo: Photo) -> np.ndarray:
        return (_shaped(photo.pixels, array.ndim).astype(np.float32) / 65535).astype(array.dtype)

    return Photo(levels), as_floats


def _shaped(pixels: np.ndarray, ndim: int) -> np.ndarray:
    return pixels[..., 0] if ndim == 2 else pixels
