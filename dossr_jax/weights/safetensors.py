"""Tensors that are read on demand, and .safetensors files, one tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary
from dossr_jax.weights.kinds import MAX_HEADER, check_content

DTYPES = {
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
# Bytes of a tensor that is mapped; smaller ones are read.
_LEAST_MAPPED = 2**18
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A tensor whose shape and dtype are known and whose data is read by `load`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.load(), dtype)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def astype(self, dtype: Any) -> Lazy:
        """The tensor in another dtype; integers and booleans keep theirs."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype or self.dtype.kind in "iub":
            return self
        return Lazy(self.shape, dtype, lambda: self.load().astype(dtype))


def lazy(array: np.ndarray) -> Lazy:
    """Wrap an array that is in memory already."""
    return Lazy(array.shape, array.dtype, lambda: array)


def is_finite(array: np.ndarray) -> bool:
    """Tell whether an array of any of DTYPES has neither NaN nor infinity in it.

    Read as integers, the bits of positive floats rise with the value, infinity and NaN come last,
    and the bits of negative ones follow with the sign in front: two maxima decide, without a
    temporary array.
    """
    if array.dtype.kind in "iub":
        return True
    infinity, size = np.array(np.inf, array.dtype), array.dtype.itemsize
    positive, negative = f"i{size}", f"u{size}"
    return bool(
        array.view(positive).max(initial=0) < infinity.view(positive)
        and array.view(negative).max(initial=0) < (-infinity).view(negative)
    )


def finite(tensor: Lazy, source: str | Path, name: str) -> Lazy:
    """The tensor `name` of the file `source`, refused where it is read and not finite.

    Its `load` raises UserError.
    """

    def load() -> np.ndarray:
        array = tensor.load()
        if not is_finite(array):
            raise UserError(
                f"{source}: {name} has NaN or infinity in it; copy or download the file again, or "
                "take an earlier checkpoint of its training"
            )
        return array

    return dataclasses.replace(tensor, load=load)


Tensors = Mapping[str, Lazy] | Mapping[str, np.ndarray]


def write_safetensors(
    path: str | Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file, one tensor in memory at a time.

    The library's own writer holds a second copy of all tensors; at SD 2.1 size that is 5 GB.

    Args:
      path: target; it appears whole or not at all.
      tensors: tensors by name, in file order; each is read once.
      metadata: string pairs of the header.

    Raises:
      UserError: the file cannot be written (disk full, no such folder).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    try:
        with temporary(path) as place, open(place, "r+b") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name, tensor in tensors.items():
                array = np.asarray(tensor, order="C")  # ascontiguousarray has no 0-d
                if array.shape != tensor.shape or array.dtype != tensor.dtype:
                    raise ValueError(f"{name}: {array.dtype}{array.shape} is not as announced")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(place, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Read the header of a .safetensors file: its tensors in their stored dtypes, and metadata.

    Large tensors are mapped, each by itself and as long as someone holds it: a conversion needs as
    much memory as its largest tensor. One that is not finite is refused when it is read.

    Raises:
      UserError: no such file, truncated, not a .safetensors file, or an unsupported dtype.
    """
    path = Path(path)
    check_content(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError("its header does not fit into it")
            header = json.loads(file.read(length))
        metadata: dict[str, str] = header.pop("__metadata__", {})
        start = 8 + length
        tensors = {name: _tensor(path, start, name, entry) for name, entry in header.items()}
        end = 0
        for begin, stop in sorted(entry["data_offsets"] for entry in header.values()):
            if begin != end:
                raise ValueError("its tensors overlap or leave gaps")
            end = stop
        if start + end != size:
            raise ValueError(f"it has {size} bytes where {start + end} should be")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a whole .safetensors file ({error}); copy or download it again"
        ) from error
    return tensors, metadata


def _tensor(path: Path, start: int, name: str, entry: Mapping[str, Any]) -> Lazy:
    """A tensor from its header entry; the data of the file begins at byte `start`."""
    try:
        kind, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{name} has no whole entry in its header") from error
    if kind not in DTYPES:
        raise UserError(
            f"{path}: {name} has dtype {kind}; convert the file to float32, float16 or bfloat16 "
            "first"
        )
    dtype = DTYPES[kind]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {end - begin} bytes, which is not {kind}{shape}")

    def load() -> np.ndarray:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < start + end:
                raise UserError(f"{path}: changed while it was read; try again")
            if end - begin < _LEAST_MAPPED:
                array = np.empty(shape, dtype)
                file.seek(start + begin)
                file.readinto(array.reshape(-1).view(np.uint8).data)
                return array
            skipped = (start + begin) % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(
                file.fileno(),
                skipped + end - begin,
                offset=start + begin - skipped,
                access=mmap.ACCESS_READ,
            )
        return np.frombuffer(mapped, dtype, math.prod(shape), skipped).reshape(shape)

    return finite(Lazy(shape, dtype, load), path, name)
