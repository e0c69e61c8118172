"""Model files as Orbax checkpoint folders, a group of tensors at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dossr_jax.errors import UserError
from dossr_jax.weights.folders import new_folder
from dossr_jax.weights.kinds import CONFIG_FILE
from dossr_jax.weights.safetensors import Lazy, finite, lazy

# Bytes of an Orbax checkpoint that are written or read at once; every write of a group rewrites
# the index of all before it.
_GROUP_BYTES = 2**26


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes tensors a group at a time; Orbax's own handler holds all of them, twice."""

    async def serialize(
        self,
        values: Sequence[Lazy],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        for part in _groups([tensor.nbytes for tensor in values]):
            futures = await super().serialize(
                [np.asarray(tensor, order="C") for tensor in values[part]],
                infos[part],
                args and args[part],
            )
            for future in futures:
                future.result()
        return []


def write_orbax(path: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> None:
    """Write tensors by name and metadata as an Orbax checkpoint folder.

    Tensors are read a group at a time. A folder that was at `path` is replaced.

    Raises:
      UserError: the folder cannot be written.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (Lazy, _LazyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # without it Orbax logs a warning
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with new_folder(path) as folder:
        with ocp.Checkpointer(handler) as checkpointer:
            tree = ocp.args.PyTreeSave(dict(tensors))
            checkpointer.save(folder.absolute() / "arrays", args=tree)
        header = {**metadata, "files": _sizes(folder)}
        (folder / CONFIG_FILE).write_text(json.dumps(header))


def read_orbax_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a folder that :func:`write_orbax` wrote, and no arrays.

    Raises:
      UserError: not such a folder, or a damaged one.
    """
    try:
        return dict(json.loads((Path(path) / CONFIG_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged checkpoint ({error}); convert or copy it again"
        ) from error


def read_orbax(path: str | Path) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """Read a folder that :func:`write_orbax` wrote: its tensors (on the host) and metadata.

    A tensor that is not finite is refused when it is asked for.

    Raises:
      UserError: not such a folder, or a damaged one.
    """
    path = Path(path).absolute()
    try:
        metadata = json.loads((path / CONFIG_FILE).read_text())
        found = _sizes(path)
        for name, size in metadata["files"].items():
            # Orbax reads truncated files in many threads, each of which prints its own traceback.
            if found.get(name) != size:
                raise ValueError(f"{name} has {found.get(name, 'no')} bytes where {size} should be")
        arrays: dict[str, np.ndarray] = {}
        with _no_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            # Of a damaged folder Orbax logs what is wrong and returns None.
            index = checkpointer.metadata(path / "arrays").item_metadata
            if index is None:
                raise ValueError("its arrays have no readable index")
            tree = index.tree
            sizes = [math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in tree.values()]
            for part in _groups(sizes):
                names = list(tree)[part]
                target = {name: np.empty(tree[name].shape, tree[name].dtype) for name in names}
                kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in target}
                arrays |= checkpointer.restore(
                    path / "arrays",
                    args=ocp.args.PyTreeRestore(target, restore_args=kinds, partial_restore=True),
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged checkpoint ({first}); convert or copy it again"
        ) from error
    return {name: finite(lazy(array), path, name) for name, array in arrays.items()}, metadata


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep Orbax from logging what the error says better."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Split tensors of these sizes in bytes into slices of about _GROUP_BYTES."""
    start = total = 0
    for stop, size in enumerate(sizes, 1):
        total += size
        if total >= _GROUP_BYTES or stop == len(sizes):
            yield slice(start, stop)
            start, total = stop, 0
