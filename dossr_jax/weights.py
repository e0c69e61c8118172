"""Model files of our own: arrays by name with the configuration inside.

One `.safetensors` file (the config in its metadata) or one Orbax checkpoint folder. Names are
the module paths joined by dots; `buffers.*` carries the tensors of a PyTorch checkpoint that hold
no learning, under their own names, so that a way back loses nothing. Files are read as data,
never as code, and every write goes to a temporary name first.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from dossr_jax import config as config_lib
from dossr_jax.config import ConfigError, DoSSRConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR

FORMAT = "dossr_jax/1"
BUFFER_PREFIX = "buffers."
_CONFIG_FILE = "dossr_jax.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Tensor(Protocol):
    """What :func:`write_safetensors` needs to know before it asks for the data."""

    shape: tuple[int, ...]
    dtype: np.dtype


def write_safetensors(
    path: Path,
    specs: Mapping[str, Tensor],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file, one tensor in memory at a time.

    The library's own writer holds a second copy of all tensors; at SD 2.1 size that is 5 GB.

    Args:
      path: target; it appears whole or not at all.
      specs: name -> anything with shape and dtype, in file order.
      read: name -> the array itself, asked for once and in order.
      metadata: string pairs of the header.

    Raises:
      UserError: the file cannot be written (disk full, no such folder).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    offset = 0
    for name, spec in specs.items():
        size = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[np.dtype(spec.dtype)],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name, spec in specs.items():
                array = np.asarray(read(name), order="C")  # ascontiguousarray has no 0-d
                if array.shape != tuple(spec.shape) or array.dtype != np.dtype(spec.dtype):
                    raise ValueError(f"{name}: {array.dtype}{array.shape} is not as announced")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class SafetensorsFile:
    """Read access to a .safetensors file, tensor by tensor, in its stored dtypes.

    Plain reads, not a memory map, whose pages would count as memory in use: a conversion needs
    as much memory as its largest tensor.

    Raises:
      UserError: no such file, truncated, or not a .safetensors file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(size - 8, _MAX_HEADER):
                    raise ValueError("its header does not fit into it")
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self._start = 8 + length
            self._entries = {name: _Entry.parse(name, entry) for name, entry in header.items()}
            end = 0
            for entry in sorted(
                self._entries.values(), key=lambda entry: (entry.offset, entry.nbytes)
            ):
                if entry.offset != end:
                    raise ValueError("its tensors overlap or leave gaps")
                end += entry.nbytes
            if self._start + end != size:
                raise ValueError(f"it has {size} bytes where {self._start + end} should be")
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file; check the path") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}: not a whole .safetensors file ({error}); copy or download it again"
            ) from error
        self.names: list[str] = list(self._entries)

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without reading the data."""
        entry = self._entries[name]
        if entry.kind not in _DTYPES:
            raise UserError(
                f"{self.path}: {name} has dtype {entry.kind}; convert the file to float32, "
                "float16 or bfloat16 first"
            )
        return entry.shape, _DTYPES[entry.kind]

    def read(self, name: str) -> np.ndarray:
        """The tensor as a NumPy array."""
        shape, dtype = self.spec(name)
        array = np.empty(shape, dtype)
        with open(self.path, "rb") as file:
            file.seek(self._start + self._entries[name].offset)
            count = file.readinto(array.reshape(-1).view(np.uint8).data)
        if count != array.nbytes:
            raise UserError(f"{self.path}: changed while it was read; try again")
        return array


# The limit of the format's own library.
_MAX_HEADER = 100_000_000


class _Entry(NamedTuple):
    """A tensor's line in the header."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @staticmethod
    def parse(name: str, entry: Mapping[str, Any]) -> _Entry:
        try:
            kind, shape = entry["dtype"], tuple(entry["shape"])
            start, end = entry["data_offsets"]
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{name} has no whole entry in its header") from error
        if kind in _DTYPES and end - start != math.prod(shape) * _DTYPES[kind].itemsize:
            raise ValueError(f"{name} has {end - start} bytes, which is not {kind}{shape}")
        return _Entry(kind, shape, start, end - start)


def names_and_params(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """(dotted name, parameter) of every parameter of a module, in a fixed order."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield ".".join(map(str, path)), param


class _OneKey:
    """Stands in for nnx.Rngs where nothing is drawn: the counters of a real one, updated under
    tracing for every layer, take a minute at the size of SD."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def make_abstract(make: Callable[[Any], nnx.Module]) -> nnx.Module:
    """The module that `make(rngs)` builds, with shapes in place of arrays: no time, no memory."""
    return nnx.eval_shape(lambda: make(_OneKey()))


def abstract_model(config: DoSSRConfig, *, dtype: Any, param_dtype: Any) -> DoSSR:
    """The model with shapes in place of arrays."""
    return make_abstract(
        lambda rngs: DoSSR(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    )


def fill(
    model: nnx.Module, read: Callable[[str], np.ndarray], names: set[str], source: str
) -> None:
    """Put the arrays `read(name)` into a (possibly abstract) module, cast to its param dtypes.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    params = dict(names_and_params(model))
    problems = [
        f"missing {name} {param.shape}" for name, param in params.items() if name not in names
    ]
    problems += [f"extra {name}" for name in sorted(names - set(params))]
    arrays = {}
    for name, param in params.items():
        if name not in names:
            continue
        array = read(name)
        if array.shape != param.shape:
            problems.append(f"misshapen {name}: file {array.shape}, model {param.shape}")
            continue
        arrays[name] = jnp.asarray(array, param.dtype)
    if problems:
        raise UserError(f"{source}: does not fit its configuration: " + "; ".join(problems))
    state = nnx.state(model, nnx.Param)
    flat = {
        path: param.replace(arrays[".".join(map(str, path))])
        for path, param in nnx.to_flat_state(state)
    }
    nnx.update(model, nnx.from_flat_state(flat))


def metadata_for(config: DoSSRConfig, notes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Header entries of a model file."""
    return {"format": FORMAT, "config": config_lib.to_json(config), **(notes or {})}


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


def read_config(path: str | Path, metadata: Mapping[str, str]) -> DoSSRConfig:
    """The configuration inside a model file's header.

    Raises:
      UserError: the file is not one of ours.
    """
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a dossr_jax model; convert it first: python -m dossr_jax.convert --help"
        )
    try:
        return config_lib.from_json(DoSSRConfig, metadata["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise UserError(
            f"{path}: its configuration cannot be read ({error}); convert it again "
            "with this version"
        ) from error


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
    path = Path(path)
    if path.is_dir():
        config, arrays = read_orbax(path)
        names, read = set(arrays), arrays.pop
    else:
        file = SafetensorsFile(path)
        config, names, read = read_config(path, file.metadata), set(file.names), file.read
    model = abstract_model(config, dtype=dtype, param_dtype=param_dtype or dtype)
    fill(model, read, {n for n in names if not n.startswith(BUFFER_PREFIX)}, str(path))
    return model


# Bytes of an Orbax checkpoint that are written or read at once; every write of a group rewrites
# the index of all before it.
_GROUP_BYTES = 2**26


class _Leaf:
    """A tensor of a checkpoint tree that is read when its turn to be written comes."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str):
        self.arrays, self.name = arrays, name


class _LeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes leaves as NumPy arrays, a group at a time; Orbax's own holds all of them, twice."""

    async def serialize(
        self,
        values: Sequence[_Leaf],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        start, group, size = 0, [], 0
        for stop, leaf in enumerate(values, 1):
            group.append(np.asarray(leaf.arrays[leaf.name], order="C"))
            size += group[-1].nbytes
            if size >= _GROUP_BYTES or stop == len(values):
                part = slice(start, stop)
                for future in await super().serialize(group, infos[part], args and args[part]):
                    future.result()
                start, group, size = stop, [], 0
        return []


def save_orbax(path: str | Path, config: DoSSRConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """Save arrays by dotted name as an Orbax checkpoint folder with the config inside.

    Each array is looked up once, when it is written, and then let go, so that a mapping which
    reads its values on access never has more than a group of them in memory.

    Raises:
      UserError: the folder exists or cannot be written.
    """
    path = Path(path).absolute()
    if path.exists():
        raise UserError(f"{path}: exists already; remove it or choose another name")
    registry = ocp.type_handlers.create_type_handler_registry(
        (_Leaf, _LeafHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # without it Orbax logs a warning
    )
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            tree = {name: _Leaf(arrays, name) for name in arrays}
            checkpointer.save(work / "arrays", args=ocp.args.PyTreeSave(tree))
        header = metadata_for(config) | {"files": _sizes(work)}
        (work / _CONFIG_FILE).write_text(json.dumps(header))
        work.chmod(0o755)
        os.replace(work, path)
    except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be written ({reason}); free space or choose another place"
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def read_orbax(path: str | Path) -> tuple[DoSSRConfig, dict[str, np.ndarray]]:
    """Configuration and arrays (on the host) of a folder that :func:`save_orbax` wrote.

    Raises:
      UserError: not such a folder, or a damaged one.
    """
    path = Path(path).absolute()
    header = path / _CONFIG_FILE
    if not header.is_file():
        raise UserError(f"{path}: no dossr_jax checkpoint (there is no {_CONFIG_FILE} in it)")
    try:
        metadata = json.loads(header.read_text())
        config = read_config(path, metadata)
        _check_sizes(path, metadata["files"])
        arrays: dict[str, np.ndarray] = {}
        with _no_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            # Of a damaged folder Orbax logs what is wrong and returns None.
            index = checkpointer.metadata(path / "arrays").item_metadata
            if index is None:
                raise ValueError("its arrays have no readable index")
            tree = index.tree
            for names in _groups(tree):
                target = {name: np.empty(tree[name].shape, tree[name].dtype) for name in names}
                kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
                arrays |= checkpointer.restore(
                    path / "arrays",
                    args=ocp.args.PyTreeRestore(target, restore_args=kinds, partial_restore=True),
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged checkpoint ({first}); convert or copy it again"
        ) from error
    return config, arrays


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    # Orbax reads truncated files in many threads, each of which prints its own traceback.
    found = _sizes(folder)
    for name, size in sizes.items():
        if found.get(name) != size:
            raise ValueError(f"{name} has {found.get(name, 'no')} bytes where {size} should be")


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


def _groups(tree: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in groups of about _GROUP_BYTES."""
    group: list[str] = []
    size = 0
    for name, leaf in tree.items():
        group.append(name)
        size += int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
