"""Whole models, written to files and read from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dossr_jax.config import ConfigError, DoSSRConfig, from_json, to_json
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.weights.kinds import Kind, kind_of
from dossr_jax.weights.orbax import read_orbax
from dossr_jax.weights.params import abstract_model, fill, names_and_params
from dossr_jax.weights.safetensors import Lazy, write_safetensors
from dossr_jax.weights.shards import read_tensors

BUFFER_PREFIX = "buffers."
_FORMAT = "dossr_jax/1"


def metadata_for(config: DoSSRConfig, notes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the header entries of a model file."""
    return {"format": _FORMAT, "config": to_json(config), **(notes or {})}


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


def open_model(path: str | Path) -> tuple[DoSSRConfig, dict[str, Lazy]]:
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
        return from_json(DoSSRConfig, metadata["config"]), tensors
    except (KeyError, TypeError, ConfigError) as error:
        raise UserError(
            f"{path}: its configuration cannot be read ({error}); convert it again "
            "with this version"
        ) from error


def _is_ours(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("format") == _FORMAT


def load_model(
    path: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any | None = None
) -> DoSSR:
    """Load a model from a .safetensors file, its shards or an Orbax checkpoint folder.

    Args:
      path: what :func:`save_model`, :func:`write_orbax` or dossr_jax.convert wrote.
      dtype: compute dtype. param_dtype: dtype of the parameters, `dtype` if None.

    Raises:
      UserError: missing, truncated, foreign or ill-fitting file, or weights that are not finite.
    """
    config, tensors = open_model(path)
    parameters = {n: t for n, t in tensors.items() if not n.startswith(BUFFER_PREFIX)}
    model = abstract_model(config, dtype=dtype, param_dtype=param_dtype or dtype)
    fill(model, parameters, str(path))
    return model
