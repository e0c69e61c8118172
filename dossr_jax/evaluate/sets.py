"""The images of an evaluation: LR and ground truth by name, read when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dossr_jax import image_io
from dossr_jax.errors import UserError
from dossr_jax.evaluate import pairing
from dossr_jax.evaluate.lowres import crop_to_multiple, make_lr, preset_scale


class ImageSet:
    """LR images, from files or made from the ground truth, and the ground truth.

    Attributes:
      names: images that have an LR side.
      references: files of the ground truth by name; empty without one.
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
        self._lr: Mapping[str, Path] = {}
        self.references: Mapping[str, Path] = {}
        self.problems: list[str] = []
        self.hr_folder = hr
        if hr is not None:
            self.references, problems = pairing.images_in(hr)
            self.problems += problems
        self.names = sorted(self.references) if preset else []
        if lr is not None:
            self._lr, problems = pairing.images_in(lr)
            self.problems += problems
            self.names = sorted(self._lr)
            if hr is not None:
                self.names, problems = pairing.common(self._lr, self.references, (lr, hr))
                self.problems += problems
        # LR images are a sixteenth of the data and may be costly to make: they are kept.
        self._made: dict[str, np.ndarray] = {}

    def input(self, name: str) -> np.ndarray:
        """LR image uint8 (h, w, 3); UserError where it cannot be read."""
        if self._preset is None:
            return image_io.read_image(self._lr[name])
        if name not in self._made:
            hr = self.reference(name)
            assert hr is not None, "a preset degrades what is there"
            if 0 in hr.shape:
                raise UserError(f"{self.references[name]}: too small to be reduced; remove it")
            self._made[name] = make_lr(hr, preset=self._preset, seed=self._seed, name=name)
        return self._made[name]

    def reference(self, name: str) -> np.ndarray | None:
        """Ground truth uint8 (h, w, 3), None if there is none; UserError if unreadable."""
        if name not in self.references:
            return None
        return crop_to_multiple(image_io.read_image(self.references[name]), self._crop)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Restored images on the disk, as one row of the report."""

    path: Path
    files: Mapping[str, Path]
    names: list[str]
    problems: list[str]

    @classmethod
    def open(cls, path: Path, images: ImageSet) -> Folder:
        """Pair the files of a folder with the ground truth, if there is one.

        Raises:
          UserError: the folder is missing or empty, or no name meets.
        """
        files, problems = pairing.images_in(path)
        names = sorted(files)
        if images.hr_folder is not None:
            folders = (path, images.hr_folder)
            names, odd = pairing.common(files, images.references, folders)
            problems = problems + odd
        return cls(path, files, names, problems)


def is_grey(image: np.ndarray) -> bool:
    """Whether the three channels of an image are equal."""
    return bool((image == image[..., :1]).all())
