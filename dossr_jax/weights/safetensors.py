"""Reading and writing .safetensors files tensor by tensor."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from dossr_jax.errors import UserError

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

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


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
