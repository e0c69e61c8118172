"""Model files of our own: arrays by name with the configuration inside.

One `.safetensors` file (the config in its metadata) or one Orbax checkpoint folder. Names are
the module paths joined by dots; `buffers.*` carries the tensors of a PyTorch checkpoint that hold
no learning, under their own names, so that a way back loses nothing. Files are read as data,
never as code, and every write goes to a temporary name first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors import SafetensorError, safe_open

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
                array = np.ascontiguousarray(read(name))
                if array.shape != tuple(spec.shape) or array.dtype != np.dtype(spec.dtype):
                    raise ValueError(f"{name}: {array.dtype}{array.shape} is not as announced")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose "
                        "another place") from error
    finally:
        temporary.unlink(missing_ok=True)


class SafetensorsFile:
    """Read access to a .safetensors file, tensor by tensor, in its stored dtypes.

    Raises:
      UserError: no such file, truncated, or not a .safetensors file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="numpy")
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file; check the path") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{self.path}: not a whole .safetensors file ({error}); copy or download it again"
            ) from error
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.names: list[str] = list(self._file.keys())

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without reading the data."""
        piece = self._file.get_slice(name)
        dtype = _DTYPES.get(piece.get_dtype())
        if dtype is None:
            raise UserError(f"{self.path}: {name} has dtype {piece.get_dtype()}; convert the file "
                            "to float32, float16 or bfloat16 first")
        return tuple(piece.get_shape()), dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor as a NumPy array."""
        return self._file.get_tensor(name)


def names_and_params(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """(dotted name, parameter) of every parameter of a module, in a fixed order."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield ".".join(map(str, path)), param


def abstract_model(config: DoSSRConfig, *, dtype: Any, param_dtype: Any) -> DoSSR:
    """The model with shapes in place of arrays: costs neither time nor memory."""
    return nnx.eval_shape(
        lambda: DoSSR(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    )


def fill(model: nnx.Module, read: Callable[[str], np.ndarray], names: set[str], source: str) -> None:
    """Put the arrays `read(name)` into a (possibly abstract) module, cast to its param dtypes.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    params = dict(names_and_params(model))
    problems = [f"missing {name} {param.shape}" for name, param in params.items()
                if name not in names]
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
    flat = {path: param.replace(arrays[".".join(map(str, path))])
            for path, param in nnx.to_flat_state(state)}
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
        raise UserError(f"{path}: its configuration cannot be read ({error}); convert it again "
                        "with this version") from error


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
        names, read = set(arrays), arrays.__getitem__
    else:
        file = SafetensorsFile(path)
        config, names, read = read_config(path, file.metadata), set(file.names), file.read
    model = abstract_model(config, dtype=dtype, param_dtype=param_dtype or dtype)
    fill(model, read, {n for n in names if not n.startswith(BUFFER_PREFIX)}, str(path))
    return model


def save_orbax(path: str | Path, config: DoSSRConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """Save arrays by dotted name as an Orbax checkpoint folder with the config inside.

    Raises:
      UserError: the folder exists or cannot be written.
    """
    path = Path(path).absolute()
    if path.exists():
        raise UserError(f"{path}: exists already; remove it or choose another name")
    parent = path.parent
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose "
                        "another place") from error
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(work / "arrays", dict(arrays))
        (work / _CONFIG_FILE).write_text(json.dumps(metadata_for(config)))
        work.chmod(0o755)
        os.replace(work, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose "
                        "another place") from error
    finally:
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
        config = read_config(path, json.loads(header.read_text()))
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path / "arrays").item_metadata.tree
            target = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in tree.items()}
            arrays = checkpointer.restore(path / "arrays", target)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged checkpoint ({first}); convert or copy it again") from error
    return config, {name: np.asarray(array) for name, array in arrays.items()}
