"""The folder of a crosscheck: weights.safetensors, config.yaml and golden.npz."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax import systems, weights
from dossr_jax.config import DoSSRConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.pytorch.infer import config_from_release_yaml
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.systems.dossr.context import with_context, without_text
from dossr_jax.systems.dossr.release import read_release
from dossr_jax.weights import Lazy

WEIGHTS, CONFIG, ARRAYS = "weights.safetensors", "config.yaml", "golden.npz"


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a PyTorch implementation left behind.

    `arrays` of golden.npz by name, NCHW where they are images or latents; `parameters` already
    under our names; `buffers` the schedule tensors of the checkpoint, as `buffers.*`.
    """

    path: Path
    config: DoSSRConfig
    parameters: Mapping[str, Lazy]
    buffers: Mapping[str, np.ndarray]
    arrays: Mapping[str, np.ndarray]


def open_folder(path: str | Path) -> Folder:
    """Read a folder; parameters stay on disk until :func:`build_model` asks for them.

    Raises:
      UserError: something is missing, truncated, or does not fit the configuration.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; give one with {WEIGHTS}, {CONFIG} and {ARRAYS} in it"
        )
    state = read_checkpoint(path / WEIGHTS)
    model = read_release(state, config=config_from_release_yaml(path / CONFIG))
    arrays = _read_arrays(path / ARRAYS)
    model = without_text(with_context(model, path / ARRAYS))
    parameters, buffers = {}, {}
    for name, tensor in model.tensors.items():
        if name.startswith(systems.BUFFER_PREFIX):
            buffers[name] = tensor.load()
        else:
            parameters[name] = tensor
    return Folder(path, model.config, parameters, buffers, arrays)


def build_model(folder: Folder, dtype: Any) -> DoSSR:
    """The model with the folder's weights, parameters and arithmetic in `dtype`."""
    model = systems.abstract_model(folder.config, dtype=dtype, param_dtype=dtype)
    weights.fill(model, folder.parameters, str(folder.path / WEIGHTS))
    return model


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


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
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

    The checkpoint's buffers are among them.
    """

    def __init__(self, folder: Folder):
        self.where = folder.path / ARRAYS
        self.arrays = {**folder.arrays, **folder.buffers}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as stored; UserError where there is none."""
        if name not in self.arrays:
            raise UserError(f"{self.where}: {name} is missing, an input of entries that are there")
        self.read.add(name)
        return self.arrays[name]
