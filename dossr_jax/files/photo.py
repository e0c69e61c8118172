"""A picture with everything that its file says of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says besides its pixels. The orientation is applied already, and 1 in `exif`.

    Attributes:
      exif: a TIFF structure, from its byte order mark on.
      xmp: an XMP packet.
      iptc: IPTC records (IIM).
      dpi: pixels per inch, (horizontal, vertical).
      text: PNG text chunks by keyword; "Comment" is the comment of a JPEG, GIF or TIFF.
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a lossy file was written, so that a result can be written alike.

    Attributes:
      tables: quantisation tables of a JPEG, as Pillow takes them.
      subsampling: chroma subsampling of a JPEG, as Pillow counts: 0 4:4:4, 1 4:2:2, 2 4:2:0.
      progressive: whether a JPEG is.
    """

    tables: dict[int, list[int]] | None = None
    subsampling: int = 0
    progressive: bool = False


@dataclasses.dataclass(frozen=True)
class Levels:
    """How numbers of a file that are neither 8 nor 16 plain bits become levels, and back.

    number = low + level / 65535 * (high - low). `dtype` is that of the file.
    """

    dtype: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.dtype}, {self.low:g} as black and {self.high:g} as white"

    def to_numbers(self, levels: np.ndarray) -> np.ndarray:
        """Levels, uint16 of any shape, as numbers of the file's dtype."""
        numbers = self.low + levels.astype(np.float64) * ((self.high - self.low) / 65535)
        dtype = np.dtype(self.dtype)
        return (np.round(numbers) if dtype.kind in "iu" else numbers).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture, upright, with what belongs to it.

    Attributes:
      pixels: uint8 or uint16 (h, w, c) of c channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        Alpha is not premultiplied.
      profile: the ICC profile of the colours (without alpha); None is sRGB.
      metadata: see :class:`Metadata`.
      format: Pillow's name of the file's format, such as "PNG"; "" for a picture without a file.
      encoding: see :class:`Encoding`. levels: see :class:`Levels`; None for plain 8 or 16 bits.
      notes: what was assumed or left out when the file was read, a short sentence each.
    """

    pixels: np.ndarray
    profile: bytes | None = None
    metadata: Metadata = Metadata()
    format: str = ""
    encoding: Encoding = Encoding()
    levels: Levels | None = None
    notes: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def mode(self) -> Literal["L", "LA", "RGB", "RGBA"]:
        """Pillow's name for the channels."""
        modes: tuple[Literal["L", "LA", "RGB", "RGBA"], ...] = ("L", "LA", "RGB", "RGBA")
        return modes[self.pixels.shape[2] - 1]

    @property
    def bits(self) -> int:
        """Per channel: 8 or 16."""
        return 8 * self.pixels.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def colors(self) -> np.ndarray:
        """The channels without alpha, (h, w, 1 or 3)."""
        return self.pixels[..., :-1] if self.has_alpha else self.pixels

    @property
    def alpha(self) -> np.ndarray | None:
        """The alpha channel (h, w), if there is one."""
        return self.pixels[..., -1] if self.has_alpha else None
