"""Pixels of files as 8- or 16-bit levels, whatever numbers they store."""

from __future__ import annotations

import io
import re

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, JpegImagePlugin

from dossr_jax.files.header import (
    channels_of,
    content_of,
    has_content,
    is_deep,
    jpeg2000_bits,
    tag_of,
)
from dossr_jax.files.photo import Levels


def read_pixels(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, Levels | None]:
    """uint8 or uint16 (h, w, 1 to 4), and how they were made from the file's numbers."""
    if has_content(image) and is_deep(image):  # which Pillow does not read whole
        if image.format == "TIFF":
            return _tiff_pixels(image, notes)
        if image.format == "PNG":
            pixels = imagecodecs.png_decode(content_of(image))
            return _with_key(_three_axes(pixels), image), None
        if image.format == "JPEG2000":
            pixels = _three_axes(imagecodecs.jpeg2k_decode(content_of(image)))
            return _scaled(pixels, 0, 2 ** jpeg2000_bits(image) - 1)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        image = _load_jpeg(image, notes)
    else:
        image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _deep_pixels(np.asarray(image)[..., None], notes)
    return np.array(_in_known_mode(image)).reshape(image.height, image.width, -1), None


def _in_known_mode(image: Image.Image) -> Image.Image:
    """The same picture in mode L, LA, RGB or RGBA, or CMYK and LAB, which have profiles."""
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK", "LAB"):
        if image.mode in ("L", "RGB") and image.has_transparency_data:
            return image.convert(image.mode + "A")
        return image
    if image.mode in ("1", "La"):
        return image.convert("L" if image.mode == "1" else "LA")
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("P", "PA"):
        colors = np.asarray(converted)[..., :3]
        if (colors == colors[..., :1]).all():
            return converted.convert("LA" if converted.mode == "RGBA" else "L")
    return converted


def _three_axes(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _with_key(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """With alpha from the colour that a PNG of 16 bits says is transparent."""
    key = image.info.get("transparency")
    if key is None or pixels.shape[-1] in (2, 4):
        return pixels
    opaque = (pixels != np.asarray(key, pixels.dtype)).any(-1, keepdims=True)
    return np.concatenate([pixels, opaque.astype(pixels.dtype) * 65535], axis=-1)


def _scaled(numbers: np.ndarray, low: float, high: float) -> tuple[np.ndarray, Levels | None]:
    """Numbers between `low` and `high` as 16-bit levels."""
    dtype = numbers.dtype
    if dtype == np.uint8 and (low, high) == (0, 255):
        return numbers, None
    if dtype == np.uint16 and (low, high) == (0, 65535):
        return numbers, None
    share = (numbers.astype(np.float64) - low) / ((high - low) or 1)
    levels = np.round(np.clip(share, 0, 1) * 65535).astype(np.uint16)
    return levels, Levels(str(dtype), low, high)


def _deep_pixels(
    numbers: np.ndarray, notes: list[str], most: float | None = None
) -> tuple[np.ndarray, Levels | None]:
    """Numbers of any type as 8- or 16-bit levels; `most` is white, if the file says so."""
    if not np.isfinite(numbers).all():
        raise ValueError("NaN or infinity among its numbers")
    if numbers.dtype == np.uint8:
        return numbers, None
    least, largest = float(numbers.min()), float(numbers.max())
    low, high = min(0.0, least), most or largest
    if numbers.dtype == np.uint16 or (numbers.dtype.kind in "iu" and 0 <= least):
        # Scanners and cameras store 10 to 14 bits in 16.
        full = [2.0**bits - 1 for bits in (12, 16, 32) if largest < 2**bits]
        high = most or (full[0] if largest > 255 else 65535.0)
    elif numbers.dtype.kind == "f" and least >= 0 and largest <= 1:
        high = 1.0
    if numbers.dtype.kind == "i" and least < 0:
        low = least
    pixels, levels = _scaled(numbers, low, max(high, largest))
    if levels is not None:
        notes.append(f"its numbers are {levels}")
    return pixels, levels


def _tiff_pixels(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, Levels | None]:
    """Pixels of a TIFF of more than 8 bits."""
    with tifffile.TiffFile(io.BytesIO(content_of(image))) as file:
        page = file.pages[image.tell()]
        assert isinstance(page, tifffile.TiffPage)
        photometric = page.photometric
        known = (
            tifffile.PHOTOMETRIC.MINISBLACK,
            tifffile.PHOTOMETRIC.MINISWHITE,
            tifffile.PHOTOMETRIC.RGB,
        )
        if photometric not in known:
            raise ValueError(
                f"{page.bitspersample} bits of {tifffile.PHOTOMETRIC(photometric).name}"
            )
        numbers = _three_axes(page.asarray())
        if page.axes.startswith("S"):
            numbers = np.moveaxis(numbers, 0, -1)
        colors, has_alpha = channels_of(page)
        extra = tuple(page.extrasamples)
        numbers = numbers[..., : colors + has_alpha]
        bits = page.bitspersample
        most = None
        if numbers.dtype.kind == "u" and bits not in (16, 32):
            most = 2.0**bits - 1
    if (found := tag_of(image, 281, (0,))[0]) and numbers.dtype.kind == "u":
        most = float(found) if numbers.max() <= found else most
    pixels, levels = _deep_pixels(numbers, notes, most)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels, levels = np.iinfo(pixels.dtype).max - pixels, None
    if has_alpha and extra[0] == 1:
        pixels = _unmultiplied(pixels)
    return pixels, levels


def _unmultiplied(pixels: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by alpha as they were before."""
    most = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.float64)
    colors = np.where(alpha > 0, pixels[..., :-1] * most / np.maximum(alpha, 1), 0)
    colors = np.round(np.clip(colors, 0, most)).astype(pixels.dtype)
    return np.concatenate([colors, pixels[..., -1:]], axis=-1)


def _load_jpeg(image: Image.Image, notes: list[str]) -> Image.Image:
    """A JPEG with its pixels, also one that lacks its last bytes alone."""
    try:
        image.load()
        return image
    except OSError as error:
        if "truncated" not in str(error):
            raise
        data = content_of(image)
    whole, shorter = (_decode_cut(data[: len(data) - cut]) for cut in (0, 6))
    if image.info.get("progressive"):
        missing = not _has_last_scan(data)
    else:
        # Where the data end, the decoder goes on with flat blocks. Cut further, a picture that
        # has all of its data but the last changes in its last blocks alone.
        changed = np.any(np.asarray(whole) != np.asarray(shorter), axis=1).nonzero()[0]
        missing = len(changed) and changed[0] < image.height - 16 - image.height // 10
    if missing:
        raise ValueError("truncated")
    notes.append("the file lacks its end")
    return whole


def _has_last_scan(data: bytes) -> bool:
    """Whether every coefficient of a progressive JPEG has its last bit in some scan."""
    components, complete = set(), set()
    for found in re.finditer(rb"\xff\xda", data):
        count = data[found.end() + 2]
        ids = [data[found.end() + 3 + 2 * i] for i in range(count)]
        first, last, bits = data[found.end() + 3 + 2 * count :][:3]
        components |= set(ids)
        if bits & 15 == 0:
            complete |= {(i, k) for i in ids for k in range(first, last + 1)}
    return all((i, k) in complete for i in components for k in range(64))


def _decode_cut(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=["JPEG"])
    image.load()
    return image
