"""Checkpoints of several .safetensors files, by the index that says which tensor is where."""

from __future__ import annotations

import json
from pathlib import Path

from dossr_jax.errors import UserError
from dossr_jax.weights.kinds import HUB_FILES, INDEX_SUFFIX, Kind, check_content, kind_of
from dossr_jax.weights.safetensors import Lazy, read_safetensors


def read_tensors(path: str | Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Read a .safetensors file, shards by their index or folder, or a folder of Hugging Face's.

    See :func:`read_safetensors`.

    Raises:
      UserError: anything else, or a damaged or missing file.
    """
    kind = kind_of(path)
    if kind is Kind.SHARDS:
        return read_shards(path)
    if kind is Kind.HUB:
        return read_safetensors(Path(path) / HUB_FILES[1])
    return read_safetensors(path)


def read_shards(path: str | Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Read shards as one checkpoint: tensors in the order of the files, metadata of all of them.

    Args:
      path: the index (*.safetensors.index.json), or a folder with one of them in it.

    Raises:
      UserError: no index or several, or a shard that is missing, damaged or of another checkpoint.
    """
    index = _find_index(Path(path))
    check_content(index)
    try:
        place = json.loads(index.read_bytes())["weight_map"]
        place = {name: index.with_name(Path(shard).name) for name, shard in place.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index}: not an index of shards ({error or type(error).__name__}); copy or download "
            "it again"
        ) from error
    tensors: dict[str, Lazy] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(place.values())):
        if not shard.exists():
            raise UserError(
                f"{shard}: no such file, though {index.name} names it; copy or download it too"
            )
        found, header = read_safetensors(shard)
        absent = [name for name, file in place.items() if file == shard and name not in found]
        if absent:
            raise UserError(
                f"{shard}: has no {absent[0]}, though {index.name} says so; copy or download both "
                "again"
            )
        tensors |= {name: t for name, t in found.items() if place.get(name, shard) == shard}
        metadata |= header
    return tensors, metadata


def _find_index(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if len(found) != 1:
        names = ", ".join(index.name for index in found) or f"no *{INDEX_SUFFIX}"
        raise UserError(f"{path}: has {names} in it; give one index")
    return found[0]
