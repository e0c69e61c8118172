"""What a program depends on, as JSON: programs of equal descriptions are equal."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import dossr_jax
from dossr_jax.config import ModelConfig, to_json

# Settings of JAX that change what it traces.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
)
_KEY_LENGTH = 20
# Where an installed package has the configurations of training.
_NOT_CODE = "configs"

Description = dict[str, Any]


def about(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What programs are to know of a model, besides its arrays."""
    return {"config": json.loads(to_json(config)), "dtype": dtype}


def describe(
    name: str, model: Mapping[str, Any], layout: Any, arguments: Any, platform: str
) -> Description:
    """The description of a program.

    Args:
      name: of the function. model: what it is to know of the model, besides its arrays.
      layout: a dataclass, what is static besides that; a sharding in it is left out.
      arguments: the arrays that it is called with, or their shapes.
      platform: "cpu", "cuda" or "tpu".
    """
    fields = {f.name: getattr(layout, f.name) for f in dataclasses.fields(layout)}
    lines = "\n".join(argument_lines(arguments))
    description = {
        "function": name,
        "code": code_hash(),
        "model": dict(model),
        "layout": {name: value for name, value in fields.items() if name != "shard"},
        "arguments": hashlib.sha256(lines.encode()).hexdigest(),
        "platform": platform,
        "settings": {name: getattr(jax.config, name) for name in _SETTINGS},
    }
    return json.loads(json.dumps(description))  # as it is read


def key_of(description: Description) -> str:
    """A short name that stands for a description."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def argument_lines(arguments: Any) -> list[str]:
    """Path, dtype and shape of every array, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(arguments)
    return [f"{jax.tree_util.keystr(path)} {a.dtype}{list(a.shape)}" for path, a in leaves]


@functools.cache
def code_hash() -> str:
    """SHA-256 of the package's source: what was traced by other code is not found."""
    root = Path(dossr_jax.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] != _NOT_CODE:
            total.update(f"{relative.as_posix()} {path.stat().st_size} ".encode())
            total.update(path.read_bytes())
    return total.hexdigest()
