"""Model files: tensors by name, with the configuration inside.

One `.safetensors` file (the config in its metadata), one Orbax checkpoint folder, or a folder in
Hugging Face's layout, with the config in config.json, too. Names are the module paths joined by
dots; `buffers.*` are the tensors of a PyTorch checkpoint that are not learned, under their own
names, so that converting back loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax.config import ConfigError, ModelConfig, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.weights.kinds import HUB_FILES, Kind, kind_of
from dossr_jax.weights.params import names_and_params
from dossr_jax.weights.safetensors import Lazy, write_safetensors
from dossr_jax.weights.shards import read_tensors

BUFFER_PREFIX = "buffers."
_FORMAT = "dossr_jax/1"
_SAFETENSORS = (Kind.SAFETENSORS, Kind.SHARDS, Kind.HUB)


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
    """Tell whether a path is a model of ours: a file, its shards, or a folder of it.

    Raises:
      UserError: it is missing, damaged, or no weights at all.
    """
    kind = kind_of(path)
    if kind is Kind.ORBAX:
        return True
    return kind in _SAFETENSORS and _is_ours(_read(path)[1])


def open_model(path: str | Path) -> tuple[Any, dict[str, Lazy]]:
    """Read configuration and tensors, `buffers.*` included, of what :func:`is_model` accepts.

    Raises:
      UserError: missing, truncated or foreign file, or a config.json that says otherwise.
    """
    tensors, metadata = _read(path)
    if not _is_ours(metadata):
        raise UserError(
            f"{path}: {kind_of(path).value}, not a dossr_jax model; convert it first: "
            "python -m dossr_jax.convert --help"
        )
    try:
        config = read_model_config(metadata["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise UserError(
            f"{path}: its configuration cannot be read ({error}); convert it again "
            "with this version"
        ) from error
    _check_beside(path, config)
    return config, tensors


def read_header(path: str | Path) -> dict[str, str]:
    """What a model of ours tells besides its configuration: its training, its licence.

    Raises:
      UserError: missing or damaged.
    """
    own = ("format", "config")
    if kind_of(path) is Kind.ORBAX:
        from dossr_jax.weights.orbax import read_orbax_metadata  # here: Orbax takes long to import

        metadata = read_orbax_metadata(path)
    else:
        metadata = _read(path)[1]
    return {k: v for k, v in metadata.items() if k not in own and isinstance(v, str)}


def _read(path: str | Path) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """Tensors and metadata, of config.json where the file has none; neither of anything else."""
    kind = kind_of(path)
    if kind is Kind.ORBAX:
        from dossr_jax.weights.orbax import read_orbax

        return read_orbax(path)
    if kind not in _SAFETENSORS:
        return {}, {}
    tensors, metadata = read_tensors(path)
    # Other libraries' tools write tensors back without the metadata.
    if not _is_ours(metadata) and (beside := _config_beside(path)) and _is_ours(beside):
        metadata = {**metadata, "format": _FORMAT, "config": _without_format(beside)}
    return tensors, metadata


def _config_beside(path: str | Path) -> dict[str, Any] | None:
    """The config.json of a folder; None without one that is a mapping."""
    try:
        values = json.loads((Path(path) / HUB_FILES[0]).read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _without_format(values: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in values.items() if name != "format"})


def _check_beside(path: str | Path, config: ModelConfig) -> None:
    """Refuse a config.json that describes another model than the one in the same folder."""
    file = Path(path) / HUB_FILES[0]
    if not file.is_file():
        return
    values = _config_beside(path)
    try:
        if values is None or not _is_ours(values):
            raise ConfigError("it is none of dossr_jax")
        beside = read_model_config(_without_format(values))
    except ConfigError as error:
        problem = str(error)
    else:
        if beside == config:
            return
        problem = _difference(json.loads(to_json(beside)), json.loads(to_json(config)))
    raise UserError(
        f"{file}: not the configuration of the model beside it ({problem}); write the folder again "
        "with python -m dossr_jax.convert --card, or give the model file itself"
    )


def _difference(here: Any, there: Any, name: str = "") -> str:
    """The first field in which two configurations differ."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                return _difference(here.get(key), there.get(key), f"{name}.{key}".lstrip("."))
    return f"{name} is {json.dumps(here)} here and {json.dumps(there)} there"


def _is_ours(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("format") == _FORMAT
