"""The pictures that experiments run on: crops of HR images and their LR partners."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.evaluate import crop_to_multiple, make_lr
from dossr_jax.image_io import find_images, read_image
from dossr_jax.restore import UPSCALE

GIVEN = "given"  # source of LR images that were not made by a preset
_LEAST = 32  # pixels: SSIM's window and its border have to fit, and a crop has to show something


@dataclasses.dataclass(frozen=True)
class Pair:
    """A crop `hr`, uint8 (4h, 4w, 3), and how its LR partner comes to be.

    `source`: the preset that makes the partner, or GIVEN. `digest`: of the pixels read from files.
    """

    name: str
    hr: np.ndarray
    make: Callable[[], np.ndarray]
    source: str
    digest: str

    @functools.cached_property
    def lr(self) -> np.ndarray:
        """The LR partner, uint8 (h, w, 3); made when first asked for, which compiles."""
        return self.make()


def is_paired(folder: Path) -> bool:
    """Whether a folder brings its own LR images, in LR beside HR."""
    return (folder / "HR").is_dir() and (folder / "LR").is_dir()


def load_pairs(
    folder: Path, *, count: int, side: int, presets: Sequence[str], seed: int
) -> list[Pair]:
    """Centre crops of `count` images spread evenly over a folder.

    A folder with the sub-folders HR and LR holds pairs of equal stems; of any other the LR
    partners are made by every one of `presets` and `seed`, after cropping: pairs of the first
    preset come first.

    Args:
      side: of an HR crop in pixels, rounded down to a multiple of 4; less where an image is less.

    Raises:
      UserError: no folder, no images in it, no partner, or a partner of another size.
    """
    if count < 1 or side < _LEAST:
        raise UserError(
            f"{count} images of {side} px cannot be measured; give --images 1 or more, "
            f"--crop {_LEAST} or more"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --data a folder of HR images")
    paired = is_paired(folder)
    images = find_images(folder / "HR" if paired else folder)
    if not images:
        raise UserError(f"{folder}: no images in it; give --data a folder of HR images")
    count = min(count, len(images))
    partners = {p.stem: p for p in sorted((folder / "LR").iterdir())} if paired else {}
    pairs = []
    for path in (images[i * len(images) // count] for i in range(count)):
        hr = crop_to_multiple(read_image(path), UPSCALE)
        if not paired:
            hr = _centre(hr, side // UPSCALE, UPSCALE)
            for preset in presets:
                make = functools.partial(make_lr, hr, preset=preset, seed=seed, name=path.stem)
                pairs.append(Pair(path.stem, hr, make, preset, _digest(hr)))
            continue
        if path.stem not in partners:
            raise UserError(f"{path}: no LR image of this name; add {path.stem} to LR")
        lr = read_image(partners[path.stem])
        if tuple(UPSCALE * s for s in lr.shape[:2]) != hr.shape[:2]:
            raise UserError(f"{partners[path.stem]}: not a quarter of {path}; make it x4")
        hr, lr = _centre(hr, side // UPSCALE, UPSCALE), _centre(lr, side // UPSCALE, 1)
        pairs.append(Pair(path.stem, hr, functools.partial(np.copy, lr), GIVEN, _digest(hr, lr)))
    return sorted(pairs, key=lambda pair: [*presets, GIVEN].index(pair.source))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        total.update(f"{file.relative_to(path)} {digest_of(file)}\n".encode())
    return total.hexdigest()


def _digest(*images: np.ndarray) -> str:
    total = hashlib.sha256()
    for image in images:
        total.update(f"{image.shape}".encode() + image.tobytes())
    return total.hexdigest()


def _centre(image: np.ndarray, units: int, unit: int) -> np.ndarray:
    """The middle `units` x `units` blocks of an image in blocks of `unit` pixels."""
    corners = [max(0, (side // unit - units) // 2) * unit for side in image.shape[:2]]
    rows, columns = (slice(corner, corner + units * unit) for corner in corners)
    return image[rows, columns]
