"""The images of an evaluation: paired by name, LR images made from HR ones where wanted."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from dossr_jax import image_io
from dossr_jax.data.degradation import choose_presets, degrade, missing
from dossr_jax.errors import UserError

_SHOWN = 5  # names in a message

_degrade = jax.jit(degrade, static_argnames="presets")
_missing = jax.jit(missing, static_argnames=("shape", "presets"))


@dataclasses.dataclass(frozen=True)
class Folder:
    """Images in a folder and its subfolders.

    Attributes:
      files: by name, the path below the folder without suffix.
      problems: what was left out: files that share a name, files without a partner.
    """

    path: Path
    files: Mapping[str, Path]
    problems: list[str]

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Find the images of a folder.

        Raises:
          UserError: no such folder, or no images in it.
        """
        if path.is_file():
            raise UserError(f"{path}: a file; give the folder that it is in")
        found: dict[str, list[Path]] = {}
        for image in image_io.find_images(path):
            name = image.relative_to(path).with_suffix("").as_posix()
            found.setdefault(name, []).append(image)
        problems = [
            f"{' and '.join(map(str, paths))}: one name for several images; keep one of them"
            for paths in found.values()
            if len(paths) > 1
        ]
        files = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
        return cls(path, files, problems)

    def paired_with(self, other: Folder | None) -> Folder:
        """Only the files that have a partner in `other`, if there is another.

        Raises:
          UserError: the folders have no name in common.
        """
        if other is None:
            return self
        names = sorted(self.files.keys() & other.files.keys())
        if not names:
            raise UserError(
                f"{self.path} and {other.path}: no names in common ({_listed(self.files)}; "
                f"{_listed(other.files)}); files pair by their name without suffix"
            )
        problems = list(self.problems)
        for has, lacks in ((self, other), (other, self)):
            if odd := sorted(has.files.keys() - lacks.files.keys()):
                problems.append(f"{has.path}: without a partner in {lacks.path}: {_listed(odd)}")
        return Folder(self.path, {name: self.files[name] for name in names}, problems)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class ImageSet:
    """LR images, from files or made from the ground truth, and the ground truth.

    Attributes:
      hr: folder of the ground truth, None without one.
      names: images that have an LR side.
      problems: files that could not be paired.
    """

    def __init__(
        self, lr: Path | None, hr: Path | None, *, preset: str | None = None, seed: int = 0
    ):
        """Find and pair the files.

        Args:
          lr, hr: folders; either may be missing.
          preset: makes the LR images from those in `hr`, with `seed`.

        Raises:
          UserError: a folder is missing or empty, names do not meet, or an unknown preset.
        """
        self._preset, self._seed = preset, seed
        self._crop = 1 if preset is None else preset_scale(preset)
        self.hr = None if hr is None else Folder.open(hr)
        self.problems = [] if self.hr is None else list(self.hr.problems)
        inputs = self.hr if preset is not None else None
        if lr is not None:
            inputs = Folder.open(lr).paired_with(self.hr)
            self.problems += inputs.problems
        self._inputs = {} if inputs is None else inputs.files
        self.names = sorted(self._inputs)
        # LR images are a sixteenth of the data and may be costly to make: they are kept.
        self._made: dict[str, np.ndarray] = {}

    def input(self, name: str) -> np.ndarray:
        """LR image uint8 (h, w, 3), see also :func:`make_lr`; UserError where it is unreadable."""
        if self._preset is None:
            return image_io.read_image(self._inputs[name])
        if name not in self._made:
            hr = self.reference(name)
            assert hr is not None, "a preset degrades what is there"
            if 0 in hr.shape:
                raise UserError(f"{self._inputs[name]}: too small to be reduced; remove it")
            self._made[name] = make_lr(hr, preset=self._preset, seed=self._seed, name=name)
        return self._made[name]

    def reference(self, name: str) -> np.ndarray | None:
        """Ground truth uint8 (h, w, 3), None if there is none; UserError if unreadable."""
        if self.hr is None:
            return None
        return crop_to_multiple(image_io.read_image(self.hr.files[name]), self._crop)


def is_grey(image: np.ndarray) -> bool:
    """Whether the three channels of an image are equal."""
    return bool((image == image[..., :1]).all())


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The top left part of an image (h, w, c) whose sides are multiples of `scale`."""
    height, width = (side - side % scale for side in image.shape[:2])
    return image[:height, :width]


def preset_scale(preset: str) -> int:
    """HR side by LR side of a preset; UserError for an unknown one."""
    return choose_presets([preset])[0].scale


def make_lr(hr: np.ndarray, *, preset: str, seed: int, name: str) -> np.ndarray:
    """Degrade an HR image.

    The result depends on the image, the preset, the seed and the name alone: not on other images,
    their order or their number. Processors and accelerators run different programs, which may
    differ by a level. A program is compiled for every size, up to a minute for the long chains.

    Args:
      hr: uint8 (h, w, 3), sides multiples of the preset's scale (:func:`crop_to_multiple`).
      preset: of `dossr_jax.data.degradation.PRESETS`.
      seed: 0 to 2^32 - 1.
      name: what tells images of a set apart: the file's stem.

    Returns:
      uint8 (h/scale, w/scale, 3), of a preset that makes holes (h, w, 4): 0 there, else 255.

    Raises:
      UserError: an unknown preset.
    """
    presets = choose_presets([preset])
    # Not Python's hash, which differs from process to process.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    x = hr[None].astype(np.float32) / 255
    lr = np.asarray(_degrade(key[None], x, presets))[0]
    lr = np.rint(255 * lr).astype(np.uint8)
    if not presets[0].holes.odds:
        return lr
    keep = 255 * ~np.asarray(_missing(key[None], x.shape[1:3], presets))[0]
    return np.concatenate([lr, keep[..., None].astype(np.uint8)], axis=-1)
