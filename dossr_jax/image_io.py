"""Plain pictures, for training and evaluation: files as sRGB of 8 bits, and resampling.

For a file with everything that belongs to it see dossr_jax.files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import color


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
                kinds = " ".join(files.SUFFIXES)
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
    for folder, subfolders, names in os.walk(root, onerror=fail):
        here = Path(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(here / name) != skip
        )
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in files.SUFFIXES:
                yield here / name


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as sRGB, uint8 (h, w, 3): without alpha, laid on white, and upright.

    Raises:
      UserError: see :func:`dossr_jax.files.read_photo`.
    """
    photo = files.read_photo(path)
    most = np.iinfo(photo.pixels.dtype).max
    rgb = color.to_srgb(photo.colors, photo.profile)
    if photo.alpha is not None:
        share = photo.alpha[..., None] / most
        rgb = np.round(rgb * share + most * (1 - share)).astype(rgb.dtype)
    return color.requantize(rgb, 8)


def write_image(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write sRGB, uint8 (h, w, 3), see :func:`dossr_jax.files.write_photo`."""
    files.write_photo(path, files.Photo(pixels))


def resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `image` (h, w, c), uint8, uint16 or float, to (height, width, c) of the same dtype.

    Lanczos where the image shrinks, bicubic otherwise, both antialiased. Integers are rounded and
    clipped; floats are resampled in float32, are not clipped and may overshoot their range.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize((width, height), kernel))
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), kernel))
        for plane in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    resized = np.stack(planes, axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        resized = np.clip(np.round(resized), 0, np.iinfo(image.dtype).max)
    return resized.astype(image.dtype)


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of an image enlarged `scale` times: Python's round(scale * side), at least 1."""
    return max(1, round(scale * height)), max(1, round(scale * width))


def _error(problem: str, remedy: str) -> UserError:
    return UserError(" ".join(f"{problem}; {remedy}".split()))
