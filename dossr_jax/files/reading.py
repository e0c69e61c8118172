"""Files to photos; whatever goes wrong is a one-line UserError."""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from dossr_jax.errors import UserError, require_extra
from dossr_jax.files import color, formats
from dossr_jax.files.header import (
    CONTENT,
    format_of,
    frames_of,
    is_deep,
    is_upright,
    jxl_size,
    mode_of,
    orientation_of,
)
from dossr_jax.files.metadata import as_grey_tiff, take_metadata
from dossr_jax.files.photo import Encoding, Metadata, Photo
from dossr_jax.files.pixels import read_pixels

# Of an input, as Pillow's own limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
# Orientation -> (swap the axes first, then flip rows, flip columns).
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclasses.dataclass(frozen=True)
class Probe:
    """What the header of a file says.

    Attributes:
      width, height: in pixels, upright.
      mode: as :attr:`Photo.mode`. bits: as :attr:`Photo.bits`. format: as :attr:`Photo.format`.
      frames: pages or frames, of which the first is read.
    """

    width: int
    height: int
    mode: str
    bits: int
    format: str
    frames: int


def probe(path: str | os.PathLike[str]) -> Probe:
    """Read the header of a file alone.

    Raises:
      UserError: it is missing, unreadable, no image, or too large.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.format == "TIFF" or is_upright(image)  # the size is that of later
        if orientation_of(image) in (5, 6, 7, 8) and not turned:
            width, height = height, width
        bits = 16 if is_deep(image) else 8
        return Probe(width, height, mode_of(image), bits, format_of(image), frames_of(image))


def read_photo(source: str | os.PathLike[str] | BinaryIO | bytes) -> Photo:
    """Read a photo with everything that belongs to it.

    Args:
      source: a file name, an open binary file or the bytes of a file. The content, not the name,
        decides the format; only camera raw files go by their suffix.

    Raises:
      UserError: whatever prevents it: not an image, empty, damaged or truncated, unreadable, or
        larger than MAX_PIXELS.
    """
    if isinstance(source, str | os.PathLike) and _suffix(source) in formats.RAW_SUFFIXES:
        return _read_raw(Path(source))
    with _opened(source) as image:
        return to_photo(image)


def to_photo(image: Image.Image) -> Photo:
    """An open or made image of Pillow as a photo; errors as Pillow raises them."""
    notes = _frame_notes(image)
    pixels, levels = read_pixels(image, notes)
    metadata, more = take_metadata(image)
    turn = None if is_upright(image) else _TURNS.get(orientation_of(image))
    profile = _profile(image, pixels, notes)
    if isinstance(profile, np.ndarray):
        pixels, profile = profile, None
    return Photo(
        pixels=np.ascontiguousarray(pixels if turn is None else _turned(pixels, *turn)),
        profile=profile,
        metadata=metadata,
        format=format_of(image),
        encoding=_encoding(image),
        levels=levels,
        notes=(*notes, *more),
    )


def _turned(pixels: np.ndarray, swap: bool, rows: bool, columns: bool) -> np.ndarray:
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


# Opening


@contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO | bytes) -> Iterator[Image.Image]:
    """An image of Pillow, its header read; what fails while it is open becomes a UserError."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "image"
    try:
        with warnings.catch_warnings():
            # Odd metadata draw warnings that say nothing about the pixels.
            warnings.simplefilter("ignore")
            if isinstance(source, bytes):
                file: BinaryIO = io.BytesIO(source)
            else:
                file = open(source, "rb") if isinstance(source, str | os.PathLike) else source
            try:
                yield _open(file, name)
            finally:
                if file is not source:
                    file.close()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name}: not an image of a kind that can be read; convert or remove it"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{name}: {error.strerror}; check name and permissions") from error
    except Image.DecompressionBombError as error:
        limit = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
        raise UserError(f"{name}: {limit}; cut or reduce the image") from error
    except MemoryError as error:
        raise UserError(f"{name}: not enough memory to read it; reduce the image") from error
    except Exception as error:  # Decoders raise almost anything on damaged data.
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UserError(
            f"{name}: damaged image ({reason}); replace it by an intact copy"
        ) from error


def _open(file: BinaryIO, name: str) -> Image.Image:
    head = file.read(64)
    if not head:
        raise UserError(f"{name}: the file is empty; replace it by an intact copy")
    file.seek(0)
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):  # Pillow's plugin decodes as it opens
        _check_size(name, *jxl_size(file))
        file.seek(0)
    try:
        image = Image.open(file, formats=formats.READABLE)
    except UnidentifiedImageError:
        if not head.startswith((b"II*\0", b"MM\0*")):
            raise
        # Pillow knows no TIFF of, say, three channels of floats. Its tags are as those of others.
        file.seek(0)
        content = file.read()
        image = Image.open(io.BytesIO(as_grey_tiff(content)), formats=["TIFF"])
        image.info[CONTENT] = content
    _check_size(name, *image.size)
    return image


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} is more than {MAX_PIXELS / 1e6:.0f} million pixels; cut or "
            "reduce the image"
        )


def _frame_notes(image: Image.Image) -> list[str]:
    frames = frames_of(image)
    kind = "pages" if image.format in ("TIFF", "ICO", "PSD") else "frames"
    return [f"the first of {frames} {kind} alone"] if frames > 1 else []


def _suffix(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()


def _encoding(image: Image.Image) -> Encoding:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return Encoding()
    return Encoding(
        tables={key: list(table) for key, table in image.quantization.items()},
        subsampling=max(0, JpegImagePlugin.get_sampling(image)),
        progressive=bool(image.info.get("progressive")),
    )


# Profiles


def _profile(image: Image.Image, pixels: np.ndarray, notes: list[str]) -> bytes | None | np.ndarray:
    """The profile of the pixels; or other pixels, where their space has no place in a photo."""
    data = image.info.get("icc_profile")
    profile = data if isinstance(data, bytes) and data else None
    if image.mode in ("CMYK", "LAB") and pixels.dtype == np.uint8 and pixels.shape[2] >= 3:
        notes.append(f"{image.mode} became sRGB")
        return _to_rgb(image, pixels, profile)
    if profile is None:
        return None
    space, wanted = color.space_of(profile), "GRAY" if pixels.shape[2] < 3 else "RGB"
    if space == wanted:
        can_read, can_write = color.directions(profile, wanted == "GRAY")
        if can_write and can_read:
            return profile
        if can_read:
            notes.append("its colour profile has no way back: converted to sRGB")
            count = 1 if wanted == "GRAY" else 3
            colors = color.to_srgb(pixels[..., :count], profile)[..., :count]
            return np.concatenate([colors, pixels[..., count:]], axis=-1)
    elif space == "RGB" and color.directions(profile, False)[0] and color.is_srgb(profile, False):
        return None  # of a grey picture: the greys of its tone curve
    notes.append("its colour profile is damaged or of another colour space, and was left out")
    return None


def _to_rgb(image: Image.Image, pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    source = Image.fromarray(pixels, image.mode)
    target = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            own = ImageCms.createProfile("LAB")
        elif profile is not None:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return np.array(source.convert("RGB"))
        converted = ImageCms.profileToProfile(source, own, target, outputMode="RGB")
        assert converted is not None  # None is for conversions in place
        return np.array(converted)
    except (ImageCms.PyCMSError, OSError):
        return np.array(source.convert("RGB"))


def _read_raw(path: Path) -> Photo:
    require_extra("raw", "rawpy", wanted_by=str(path))
    import rawpy  # pyright: ignore[reportMissingImports]

    try:
        with rawpy.imread(os.fspath(path)) as raw:
            pixels = raw.postprocess(use_camera_wb=True, output_bps=16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check name and permissions") from error
    except rawpy.LibRawError as error:
        raise UserError(
            f"{path}: damaged camera raw file ({error}); replace it by an intact copy"
        ) from error
    return Photo(pixels, metadata=Metadata(), format="RAW", notes=("developed with defaults",))
