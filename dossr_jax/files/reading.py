"""Files to photos; whatever goes wrong is a one-line UserError."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from dossr_jax.errors import UserError, require_extra
from dossr_jax.files import color, formats
from dossr_jax.files.metadata import as_grey_tiff, take_metadata
from dossr_jax.files.photo import Encoding, Levels, Metadata, Photo

# Of an input, as Pillow's own limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
_ORIENTATION_TAG = 0x0112
_CONTENT = "content"  # in an image's info: the file, where Pillow reads a stand-in
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
    """What the header of a file says, upright."""

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
        turned = image.format == "TIFF" or _is_upright(image)  # the size is that of later
        if _orientation(image) in (5, 6, 7, 8) and not turned:
            width, height = height, width
        bits = 16 if _is_deep(image) else 8
        return Probe(width, height, _mode(image), bits, _format(image), _frames(image))


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
    pixels, levels = _read_pixels(image, notes)
    metadata, more = take_metadata(image)
    turn = None if _is_upright(image) else _TURNS.get(_orientation(image))
    profile = _profile(image, pixels, notes)
    if isinstance(profile, np.ndarray):
        pixels, profile = profile, None
    return Photo(
        pixels=np.ascontiguousarray(pixels if turn is None else _turned(pixels, *turn)),
        profile=profile,
        metadata=metadata,
        format=_format(image),
        encoding=_encoding(image),
        levels=levels,
        notes=(*notes, *more),
    )


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
        _check_size(name, *_jxl_size(file))
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
        image.info[_CONTENT] = content
    _check_size(name, *image.size)
    return image


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} is more than {MAX_PIXELS / 1e6:.0f} million pixels; cut or "
            "reduce the image"
        )


def _jxl_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height by the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader)."""
    data = file.read(2**16)
    at = data.find(b"\xff\x0a")
    bits = int.from_bytes(data[at + 2 : at + 18], "little")
    place = 0

    def take(count: int) -> int:
        nonlocal place
        value = bits >> place & (1 << count) - 1
        place += count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    shares = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    if not ratio:
        return side(), height
    numerator, denominator = shares[ratio - 1]
    return height * numerator // denominator, height


# What a header says


def _suffix(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()


def _format(image: Image.Image) -> str:
    return {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format or "")


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":  # further frames are previews, depth maps or a second eye
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # A damaged second page leaves the first one intact.
        return 1


def _frame_notes(image: Image.Image) -> list[str]:
    frames = _frames(image)
    kind = "pages" if image.format in ("TIFF", "ICO", "PSD") else "frames"
    return [f"the first of {frames} {kind} alone"] if frames > 1 else []


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Malformed metadata must not cost an intact picture.
        return 1


def _is_upright(image: Image.Image) -> bool:
    """Whether the decoder turns the image by itself, whatever EXIF says."""
    return image.format in ("HEIF", "JXL")


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "PNG":
        return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.format == "TIFF":
        return _CONTENT in image.info or max(_tag(image, 258, (8,))) > 8
    if image.format == "JPEG2000":
        return _jpeg2000_bits(image) > 8
    return image.format == "JXL" and image.mode == "F"


def _tag(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _mode(image: Image.Image) -> str:
    if _CONTENT in image.info:
        with tifffile.TiffFile(io.BytesIO(_content(image))) as file:
            colors, alpha = _channels(file.pages[0])
        return ("L" if colors == 1 else "RGB") + "A" * alpha
    # Pillow shows grey and alpha of 16 bits as RGBA.
    raw = "".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    grey = grey or raw.startswith("LA;16")
    alpha = image.has_transparency_data
    return ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")


def _encoding(image: Image.Image) -> Encoding:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return Encoding()
    return Encoding(
        tables={key: list(table) for key, table in image.quantization.items()},
        subsampling=max(0, JpegImagePlugin.get_sampling(image)),
        progressive=bool(image.info.get("progressive")),
    )


# Pixels


def _read_pixels(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, Levels | None]:
    """uint8 or uint16 (h, w, 1 to 4), and how they were made from the file's numbers."""
    if image.format == "TIFF" and (found := _tiff_pixels(image, notes)):
        return found
    if image.format in ("PNG", "JPEG2000") and _is_deep(image):
        data = _content(image)
        if image.format == "PNG":
            pixels = imagecodecs.png_decode(data)
            return _with_key(_three_axes(pixels), image), None
        pixels = _three_axes(imagecodecs.jpeg2k_decode(data))
        return _scaled(pixels, 0, 2 ** _jpeg2000_bits(image) - 1)
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
            return image.convert(image.mode[:1] + "A" if image.mode == "L" else "RGBA")
        return image
    if image.mode in ("1", "La"):
        return image.convert("L" if image.mode == "1" else "LA")
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("P", "PA"):
        colors = np.asarray(converted)[..., :3]
        if (colors == colors[..., :1]).all():
            return converted.convert("LA" if converted.mode == "RGBA" else "L")
    return converted


def _content(image: Image.Image) -> bytes:
    if _CONTENT in image.info:
        return image.info[_CONTENT]
    file: BinaryIO = getattr(image, "fp")  # noqa: B009
    file.seek(0)
    return file.read()


def _three_axes(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _with_key(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """With alpha from the colour that a PNG of 16 bits says is transparent."""
    key = image.info.get("transparency")
    if key is None or pixels.shape[-1] in (2, 4):
        return pixels
    opaque = (pixels != np.asarray(key, pixels.dtype)).any(-1, keepdims=True)
    return np.concatenate([pixels, opaque.astype(pixels.dtype) * 65535], axis=-1)


def _jpeg2000_bits(image: Image.Image) -> int:
    """Bits per channel by the SIZ marker of a JPEG 2000 file."""
    data = _content(image)
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 8


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


def _tiff_pixels(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, Levels | None] | None:
    """Pixels of a TIFF of more than 8 bits, which Pillow does not read whole."""
    if not _is_deep(image):
        return None
    with tifffile.TiffFile(io.BytesIO(_content(image))) as file:
        page = file.pages[0]
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
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and numbers.ndim == 3:
            numbers = np.moveaxis(numbers, 0, -1) if page.axes.startswith("S") else numbers
        colors, has_alpha = _channels(page)
        extra = tuple(page.extrasamples)
        numbers = numbers[..., : colors + has_alpha]
        bits = page.bitspersample
        most = None
        if numbers.dtype.kind == "u" and bits not in (16, 32):
            most = 2.0**bits - 1
    if (found := _tag(image, 281, (0,))[0]) and numbers.dtype.kind == "u":
        most = float(found) if numbers.max() <= found else most
    pixels, levels = _deep_pixels(numbers, notes, most)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels, levels = np.iinfo(pixels.dtype).max - pixels, None
    if has_alpha and extra[0] == 1:
        pixels = _unmultiplied(pixels)
    return pixels, levels


def _channels(page: Any) -> tuple[int, bool]:
    """Channels of colour of a page of a TIFF, and whether one of alpha follows."""
    colors = 3 if page.photometric == tifffile.PHOTOMETRIC.RGB else 1
    return colors, tuple(page.extrasamples)[:1] in ((1,), (2,))


def _unmultiplied(pixels: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by alpha as they were before."""
    most = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.float64)
    colors = np.where(alpha > 0, pixels[..., :-1] * most / np.maximum(alpha, 1), 0)
    colors = np.round(np.clip(colors, 0, most)).astype(pixels.dtype)
    return np.concatenate([colors, pixels[..., -1:]], axis=-1)


def _turned(pixels: np.ndarray, swap: bool, rows: bool, columns: bool) -> np.ndarray:
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


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


# Kinds of their own


def _load_jpeg(image: Image.Image, notes: list[str]) -> Image.Image:
    """A JPEG with its pixels, also one that lacks its last bytes alone."""
    try:
        image.load()
        return image
    except OSError as error:
        if "truncated" not in str(error):
            raise
        data = _content(image)
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
