"""The formats of image files: what can be read, what can be written, and what each can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pillow_heif
import pillow_jxl  # noqa: F401  Pillow reads and writes JPEG XL by it
from PIL import Image

pillow_heif.register_heif_opener(thumbnails=False)
Image.init()  # Image.open knows only the formats of modules that are loaded

ALL_MODES = frozenset({"L", "LA", "RGB", "RGBA"})
_OPAQUE, _COLORED = frozenset({"L", "RGB"}), frozenset({"RGB", "RGBA"})


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that can be written.

    Attributes:
      suffix: the usual one.
      modes: of :attr:`dossr_jax.files.Photo.mode` that it can hold.
      bits: the most per channel.
      max_side: the largest width and height.
      holds: which of "profile", "exif", "xmp", "iptc", "dpi" and "text" it can hold.
      quality: the default quality of a lossy format; None for a lossless one.
      options: how Pillow writes it.
    """

    suffix: str
    modes: frozenset[str] = ALL_MODES
    bits: int = 8
    max_side: int = 2**31 - 1
    holds: frozenset[str] = frozenset({"profile", "exif", "xmp"})
    quality: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_EVERYTHING = frozenset({"profile", "exif", "xmp", "iptc", "dpi", "text"})

# By Pillow's names.
WRITABLE: dict[str, Format] = {
    "PNG": Format(".png", bits=16, holds=_EVERYTHING),
    "JPEG": Format(
        ".jpg", _OPAQUE, max_side=65535, holds=_EVERYTHING, quality=95, options={"optimize": True}
    ),
    "WEBP": Format(
        ".webp", _COLORED, max_side=16383, quality=95, options={"method": 4, "exact": True}
    ),
    "TIFF": Format(".tif", bits=16, holds=_EVERYTHING),
    "BMP": Format(".bmp", _OPAQUE, holds=frozenset({"dpi"})),
    "AVIF": Format(".avif", _COLORED, max_side=65535, quality=90, options={"subsampling": "4:4:4"}),
    "JXL": Format(".jxl", max_side=2**30, holds=frozenset({"exif", "xmp"}), quality=95),
    "JPEG2000": Format(".jp2", holds=frozenset()),
}

# Suffix -> Pillow's name of the format that the file most likely has; the content decides.
SUFFIXES: dict[str, str] = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jif": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".avif": "AVIF",
    ".jxl": "JXL",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".tga": "TGA",
    ".qoi": "QOI",
    ".ico": "ICO",
    ".pcx": "PCX",
    ".psd": "PSD",
}

# Some of Pillow's other readers start external programs.
READABLE = tuple(sorted({*SUFFIXES.values(), "DIB"}))

# Read by rawpy, which the extra "raw" installs.
RAW_SUFFIXES = frozenset(
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .x3f .3fr .iiq".split()
)
