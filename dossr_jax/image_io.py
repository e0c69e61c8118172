"""Image files in and out, by Pillow; whatever goes wrong is a one-line UserError.

Arrays are uint8 (h, w, 3), RGB. Reading applies the EXIF orientation, converts an embedded RGB or
CMYK colour profile to sRGB, lays transparent images on white, keeps the upper 8 of 16 bits
(rounded where Pillow hands over all 16), and takes the first frame or page of several.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from dossr_jax.errors import UserError

# Suffix -> Pillow's format and how to write it. Only these formats are read, too: some of Pillow's
# other readers start external programs.
_FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
IMAGE_SUFFIXES = tuple(_FORMATS)

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class InputImage:
    """A file to read, and where its result belongs below the output folder."""

    path: Path
    relative: Path


def find_images(
    paths: Sequence[str | os.PathLike[str]], *, exclude: Path | None = None
) -> list[InputImage]:
    """The images that `paths`, files and folders, stand for, each file once, in a fixed order.

    A file named explicitly is taken whatever it is (reading it may fail). In folders and their
    subfolders, files count by their suffix, and hidden ones do not; `relative` keeps the
    subfolder. `exclude`, usually the output folder, is skipped where it lies below an input
    folder. Raises UserError for a path that is missing or unreadable, a folder without images,
    and two files whose results would have the same name.
    """
    found: dict[str, InputImage] = {}
    owners: dict[Path, Path] = {}
    for path in map(Path, paths):
        for image in _list(path, exclude):
            real = os.path.realpath(image.path)
            if real in found:
                continue
            other = owners.setdefault(image.relative, image.path)
            if other is not image.path:
                raise _error(
                    f"{other} and {image.path} would both be written as {image.relative}",
                    "restore them into different output folders",
                )
            found[real] = image
    return list(found.values())


def _list(path: Path, exclude: Path | None) -> list[InputImage]:
    try:
        if path.is_dir():
            images = [InputImage(p, p.relative_to(path)) for p in _walk(path, exclude)]
            if not images:
                kinds = " ".join(IMAGE_SUFFIXES)
                raise _error(f"{path}: no images in this folder", f"it needs one of {kinds}")
            return images
        if path.is_file():
            return [InputImage(path, Path(path.name))]
    except OSError as error:
        raise _error(f"{path}: {error.strerror or error}", "check name and permissions") from error
    if path.exists():
        raise _error(f"{path}: neither a file nor a folder", "name image files or folders")
    raise _error(f"{path}: no such file or folder", "check the path")


def _walk(root: Path, exclude: Path | None) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    skip = os.path.realpath(exclude) if exclude is not None else None
    for folder, subfolders, files in os.walk(root, onerror=fail):
        here = Path(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(here / name) != skip
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in _FORMATS:
                yield here / name


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as RGB, uint8 (h, w, 3); see the module for conversions.

    Raises UserError for anything that prevents it: not an image, empty, damaged or truncated,
    unreadable, or so large (about 90 million pixels) that it may be a decompression bomb.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            # Odd metadata draw warnings that say nothing about the pixels.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not file.read(1):
                raise _error(f"{path}: the file is empty", "replace it by an intact copy")
            file.seek(0)
            return _decode(file)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels"
        raise _error(f"{path}: {limit}", "cut or reduce the image") from error
    except UnidentifiedImageError as error:
        kinds = "PNG, JPEG, WebP, BMP or TIFF"
        raise _error(f"{path}: not a {kinds} image", "convert or remove it") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise _error(f"{path}: {error.strerror}", "check name and permissions") from error
    except MemoryError as error:
        raise _error(f"{path}: not enough memory to read it", "reduce the image") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data.
        reason = str(error) or type(error).__name__
        raise _error(f"{path}: damaged image ({reason})", "replace it by an intact copy") from error


def to_array(image: Image.Image) -> np.ndarray:
    """An open or made image as :func:`read_image` would give it, uint8 (h, w, 3).

    Raises UserError where its pixels cannot be read.
    """
    try:
        return _pixels(image)
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data.
        reason = str(error) or type(error).__name__
        raise _error(f"damaged image ({reason})", "replace it by an intact copy") from error


def _decode(file: io.BufferedReader) -> np.ndarray:
    with Image.open(file, formats=sorted({name for name, _ in _FORMATS.values()})) as image:
        return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    pixels = _to_rgb(image)
    turn = _ORIENTATIONS.get(_orientation(image))
    return np.array(pixels if turn is None else pixels.transpose(turn))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Malformed metadata must not cost an intact picture.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return _to_srgb(image).convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Apply an embedded profile other than sRGB; one that cannot be applied is ignored."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted is not None  # None is for conversions in place
        return converted
    except (ImageCms.PyCMSError, OSError):
        return image


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise UserError where `path` cannot be a folder with files written into it."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise _error(f"{path}: cannot be written into", "choose a folder you can write to")


def write_image(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write uint8 (h, w, 3) to `path`, its suffix choosing the format; folders are made.

    JPEG is written at quality 95 without chroma subsampling, WebP at quality 95. The file appears
    whole or not at all. Raises UserError for an unknown suffix, an image too large for the format,
    and anything the disk refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        kinds = " ".join(IMAGE_SUFFIXES)
        raise _error(f"{path}: cannot write this kind of file", f"use one of {kinds}")
    name, options = _FORMATS[path.suffix.lower()]
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(encoded, format=name, **options)
    except (OSError, ValueError) as error:  # JPEG and WebP limit the sides of an image.
        raise _error(f"{path}: cannot encode as {name} ({error})", "write PNG instead") from error
    write_file(path, encoded.getbuffer())


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all; folders are made.

    It is written under a temporary name beside it and renamed. Raises UserError for anything the
    disk refuses.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some disk space" if full else "choose a folder you can write to"
        raise _error(f"{path}: cannot write ({error.strerror or error})", remedy) from error


def resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `image` (h, w, 3), uint8 or float, to (height, width, 3) of the same dtype.

    Lanczos where the image shrinks, bicubic otherwise, both antialiased. uint8 is rounded to 8
    bits; floats are resampled in float32, are not clipped and may overshoot their range.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    if image.dtype == np.uint8:
        return np.array(Image.fromarray(image).resize((width, height), kernel))
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), kernel))
        for plane in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack(planes, axis=-1).astype(image.dtype)


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of an image enlarged `scale` times: Python's round(scale * side), at least 1."""
    return max(1, round(scale * height)), max(1, round(scale * width))


def _error(problem: str, remedy: str) -> UserError:
    return UserError(" ".join(f"{problem}; {remedy}".split()))
