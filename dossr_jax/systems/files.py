"""Model files: tensors by name, with the configuration inside.

One `.safetensors` file (the config in its metadata) or one Orbax checkpoint folder. Names are the
module paths joined by dots; `buffers.*` are the tensors of a PyTorch checkpoint that are not
learned, under their own names, so that converting back loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax.config import ConfigError, ModelConfig, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.weights.kinds import Kind, kind_of
from dossr_jax.weights.orbax import read_orbax
from dossr_jax.weights.params import names_and_params
from dossr_jax.weights.safetensors import Lazy, write_safetensors
from dossr_jax.weights.shards import read_tensors

BUFFER_PREFIX = "buffers."
_FORMAT = "dossr_jax/1"


def metadata_for(config: ModelConfig, notes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the header entries of a model file."""
    return {"format": _FORMAT, "config": to_json(config), **(notes or {})}


def save_model(
    path: str | Path,
    model: Any,
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
    write_safetensors(path, arrays, metadata_for(model.config, notes))


def is_model(path: str | Path) -> bool:
    """Tell whether a path is a model of ours: a file, its shards or an Orbax checkpoint folder.

    Raises:
      UserError: it is missing, damaged, or no weights at all.
    """
    kind = kind_of(path)
    if kind is Kind.ORBAX:
        return True
    return kind in (Kind.SAFETENSORS, Kind.SHARDS) and _is_ours(read_tensors(path)[1])


def open_model(path: str | Path) -> tuple[Any, dict[str, Lazy]]:
    """Read configuration and tensors, `buffers.*` included, of what :func:`is_model` accepts.

    Raises:
      UserError: missing, truncated or foreign file.
    """
    kind = kind_of(path)
    if kind in (Kind.SAFETENSORS, Kind.SHARDS):
        tensors, metadata = read_tensors(path)
    elif kind is Kind.ORBAX:
        tensors, metadata = read_orbax(path)
    else:
        tensors, metadata = {}, {}
    if not _is_ours(metadata):
        raise UserError(
            f"{path}: {kind.value}, not a dossr_jax model; convert it first: "
            "python -m dossr_jax.convert --help"
        )
    try:
        return read_model_config(metadata["config"]), tensors
    except (KeyError, TypeError, ConfigError) as error:
        raise UserError(
            f"{path}: its configuration cannot be read ({error}); convert it again "
            "with this version"
        ) from error


def _is_ours(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("format") == _FORMAT
