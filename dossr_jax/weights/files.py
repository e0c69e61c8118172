"""Whole models in and out of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dossr_jax.config import DoSSRConfig
from dossr_jax.models.dossr import DoSSR
from dossr_jax.weights.header import BUFFER_PREFIX, metadata_for, read_config
from dossr_jax.weights.orbax import read_orbax
from dossr_jax.weights.params import abstract_model, fill, names_and_params
from dossr_jax.weights.safetensors import SafetensorsFile, write_safetensors


def save_model(
    path: str | Path,
    model: DoSSR,
    *,
    dtype: Any | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save a model as one .safetensors file.

    Args:
      path: the file.
      model: its parameters are written under their dotted names.
      dtype: store floating parameters in this dtype; None keeps theirs.
      notes: further header entries (licence, data, recipe).
    """
    arrays = {
        name: np.asarray(param[...], dtype or param.dtype)
        for name, param in names_and_params(model)
    }
    write_safetensors(Path(path), arrays, arrays.__getitem__, metadata_for(model.config, notes))


class ModelFile(NamedTuple):
    """A model file, open: its configuration and a reader of its parameters by name."""

    config: DoSSRConfig
    names: set[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def open_model(path: str | Path) -> ModelFile:
    """Open a .safetensors file or an Orbax checkpoint folder.

    Raises:
      UserError: missing, truncated or foreign file.
    """
    path = Path(path)
    if path.is_dir():
        config, arrays = read_orbax(path)
        shapes = {name: array.shape for name, array in arrays.items()}
        names, read = set(arrays), arrays.__getitem__

        def shape(name: str) -> tuple[int, ...]:
            return shapes[name]
    else:
        file = SafetensorsFile(path)
        config, names, read = read_config(path, file.metadata), set(file.names), file.read

        def shape(name: str) -> tuple[int, ...]:
            return file.spec(name)[0]

    kept = {name for name in names if not name.startswith(BUFFER_PREFIX)}
    return ModelFile(config, kept, shape, read)


def load_model(
    path: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any | None = None
) -> DoSSR:
    """Load a model from a .safetensors file or an Orbax checkpoint folder.

    Args:
      path: what :func:`save_model`, :func:`save_orbax` or dossr_jax.convert wrote.
      dtype: compute dtype. param_dtype: dtype of the parameters, `dtype` if None.

    Raises:
      UserError: missing, truncated, foreign or ill-fitting file.
    """
    file = open_model(path)
    model = abstract_model(file.config, dtype=dtype, param_dtype=param_dtype or dtype)
    fill(model, file.read, file.names, str(path))
    return model
