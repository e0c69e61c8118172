"""Plain pictures, for training and evaluation: files as sRGB of 8 bits, and resampling.

For a file with everything that belongs to it see dossr_jax.files.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import color


def find_images(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, by their suffixes, in a fixed order.

    Hidden files and folders do not count, and links to folders are not followed.

    Raises:
      UserError: it is missing, unreadable, no folder, or without images.
    """

    def fail(error: OSError) -> None:
        raise error

    if not os.path.isdir(folder):
        problem = "not a folder" if os.path.exists(folder) else "no such file or folder"
        raise UserError(f"{folder}: {problem}; name a folder of images")
    found = []
    try:
        for here, subfolders, names in os.walk(folder, onerror=fail):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            found += [
                Path(here, name)
                for name in sorted(names)
                if not name.startswith(".") and Path(name).suffix.lower() in files.SUFFIXES
            ]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: {reason}; check name and permissions") from error
    if not found:
        kinds = " ".join(files.SUFFIXES)
        raise UserError(f"{folder}: no images in this folder; it needs one of {kinds}")
    return found


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as sRGB, uint8 (h, w, 3): without alpha, laid on white, and upright.

    Raises:
      UserError: see :func:`dossr_jax.files.read_photo`.
    """
    photo = files.read_photo(path)
    rgb = color.to_srgb(photo.colors, photo.profile)
    if photo.alpha is not None:
        rgb = color.lay_on_white(rgb, photo.alpha)
    return color.requantize(rgb, 8)


def write_image(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write sRGB, uint8 (h, w, 3), see :func:`dossr_jax.files.write_photo`."""
    files.write_photo(path, files.Photo(pixels))


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def resample(image: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Resize `image` (h, w, c), uint8, uint16 or float, to (height, width, c) of the same dtype.

    Lanczos where the image shrinks, bicubic otherwise, both antialiased. Integers are rounded and
    clipped; floats are resampled in float32, are not clipped and may overshoot their range. With a
    `box`, that part of the image is resized, of which the pixels around it are the surroundings.
    """
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    if (bottom - top, right - left) == (height, width) and (left % 1, top % 1) == (0, 0):
        return image[int(top) :, int(left) :][:height, :width]
    shrinks = height * width < (bottom - top) * (right - left)
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize((width, height), kernel, box))
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), kernel, box))
        for plane in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    resized = np.stack(planes, axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        resized = np.clip(np.round(resized), 0, np.iinfo(image.dtype).max)
    return resized.astype(image.dtype)


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of an image enlarged `scale` times: Python's round(scale * side), at least 1."""
    return max(1, round(scale * height)), max(1, round(scale * width))
