"""The folder of a crosscheck: weights.safetensors, config.yaml and golden.npz."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax import systems
from dossr_jax.errors import UserError
from dossr_jax.systems import Model

WEIGHTS, CONFIG, ARRAYS = "weights.safetensors", "config.yaml", "golden.npz"


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a PyTorch implementation left behind.

    `models` by name, tensors already under our names; `arrays` of golden.npz by name, NCHW where
    they are images or latents.
    """

    path: Path
    models: Mapping[str, Model]
    arrays: Mapping[str, np.ndarray]

    def build(self, name: str, dtype: Any) -> Any:
        """A model with the folder's weights, parameters and arithmetic in `dtype`."""
        model = self.models[name]
        return systems.build_model(
            model.config, model.tensors, str(self.path / WEIGHTS), dtype=dtype
        )


# What NumPy raises for files that are cut short, changed, or something else altogether.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    AttributeError,
    TypeError,
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file.

    Raises:
      UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the folder")
    try:
        # NumPy leaves files open that it opened itself and then could not read.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a whole .npz file ({reason}); copy or make it again"
        ) from error


class Archive:
    """Stored arrays that remember which of them were asked for as inputs.

    The schedule tensors of the checkpoint are among them, as `buffers.*`.
    """

    def __init__(self, folder: Folder):
        self.where = folder.path / ARRAYS
        buffers = {
            name: tensor.load()
            for model in folder.models.values()
            for name, tensor in model.tensors.items()
            if name.startswith(systems.BUFFER_PREFIX)
        }
        self.arrays = {**folder.arrays, **buffers}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as stored; UserError where there is none."""
        if name not in self.arrays:
            raise UserError(f"{self.where}: {name} is missing, an input of entries that are there")
        self.read.add(name)
        return self.arrays[name]
