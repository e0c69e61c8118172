"""Named tensors that are read only when asked for, and the one engine that applies a table.

A conversion is a chain of renamings and transforms over :class:`State`; nothing is loaded until
the writer asks for one tensor after the other, so that a checkpoint never lies in memory whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dossr_jax.convert.tables import Row
from dossr_jax.errors import UserError
from dossr_jax.weights import SafetensorsFile

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A tensor with its shape and dtype known and its data behind `load`."""

    shape: Shape
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def astype(self, dtype: Any) -> Lazy:
        """The same in another dtype; integers and booleans keep theirs."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype or self.dtype.kind in "iub":
            return self
        return Lazy(self.shape, dtype, lambda: self.load().astype(dtype))


def lazy(array: np.ndarray) -> Lazy:
    """An array that is in memory already."""
    return Lazy(array.shape, array.dtype, lambda: array)


def zeros(shape: Shape, dtype: np.dtype) -> Lazy:
    """Zeros, made when asked for."""
    return Lazy(shape, dtype, lambda: np.zeros(shape, dtype))


@dataclasses.dataclass(frozen=True)
class State:
    """Tensors by name. `source` is the file for messages, `doubled` names that collided."""

    source: str
    tensors: dict[str, Lazy]
    doubled: tuple[str, ...] = ()

    def rename(self, new_name: Callable[[str], str]) -> State:
        """The same tensors under new names; two that meet under one name are kept as doubled."""
        tensors: dict[str, Lazy] = {}
        origin: dict[str, str] = {}
        doubled = list(self.doubled)
        for name, tensor in self.tensors.items():
            new = new_name(name)
            if new in tensors:
                doubled.append(f"{new} (as {origin[new]} and {name})")
                continue
            tensors[new] = tensor
            origin[new] = name
        return State(self.source, tensors, tuple(doubled))

    def select(self, keep: Callable[[str], bool]) -> State:
        """The tensors whose names `keep` wants."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if keep(name)}
        return State(self.source, tensors, self.doubled)

    def below(self, prefix: str) -> State:
        """The tensors whose names start with `prefix`, without it."""
        return self.select(lambda name: name.startswith(prefix)).rename(
            lambda name: name[len(prefix) :]
        )

    def shape(self, name: str) -> Shape:
        """Shape of a tensor that the configuration is read from.

        Raises:
          UserError: there is no such tensor.
        """
        if name not in self.tensors:
            raise UserError(
                f"{self.source}: not the kind of checkpoint it should be, it has no "
                f"{name}; check the path"
            )
        return self.tensors[name].shape


def from_safetensors(file: SafetensorsFile) -> State:
    """All tensors of an open file."""

    def entry(name: str) -> Lazy:
        shape, dtype = file.spec(name)
        return Lazy(shape, dtype, lambda: file.read(name))

    return State(str(file.path), {name: entry(name) for name in file.names})


_TO_OURS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda a: a,
    "linear": lambda a: a.T,
    "conv": lambda a: a.transpose(2, 3, 1, 0),
    "conv1x1_linear": lambda a: a[:, :, 0, 0].T,
}
_TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda a: a,
    "linear": lambda a: a.T,
    "conv": lambda a: a.transpose(3, 2, 0, 1),
    "conv1x1_linear": lambda a: a.T[:, :, None, None],
}
_PARTS = 3


def our_shape(row: Row) -> Shape:
    """Shape of a row's tensor on our side (of its third, where three are fused)."""
    o_i = row.shape[:2]
    return {
        "copy": row.shape,
        "linear": row.shape[::-1],
        "conv": (*row.shape[2:], *o_i[::-1]),
        "conv1x1_linear": o_i[::-1],
    }[row.transform]


def to_ours(table: Iterable[Row], state: State) -> dict[str, Lazy]:
    """PyTorch tensors as ours, by a table that must fit exactly.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key, with both shapes.
    """
    rows = list(table)
    _check(state, {row.torch: row.shape for row in rows})
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.ours, []).append(row)
    return {ours: _join(group, state.tensors) for ours, group in grouped.items()}


def to_torch(table: Iterable[Row], state: State) -> dict[str, Lazy]:
    """Our tensors under their PyTorch names: the inverse of :func:`to_ours`, bit for bit.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    rows = list(table)
    shapes = {}
    for row in rows:
        shape = our_shape(row)
        if row.part is not None:
            shape = (*shape[:-1], _PARTS * shape[-1])
        shapes[row.ours] = shape
    _check(state, shapes)
    return {row.torch: _split(row, state.tensors[row.ours]) for row in rows}


def _join(rows: list[Row], tensors: Mapping[str, Lazy]) -> Lazy:
    pieces = [tensors[row.torch] for row in rows]
    if rows[0].part is None:
        row, piece = rows[0], pieces[0]
        return Lazy(our_shape(row), piece.dtype, lambda: _TO_OURS[row.transform](piece.load()))
    shape = our_shape(rows[0])

    def load() -> np.ndarray:
        arrays = [_TO_OURS[r.transform](p.load()) for r, p in zip(rows, pieces, strict=True)]
        return np.concatenate(arrays, axis=-1)

    return Lazy((*shape[:-1], _PARTS * shape[-1]), pieces[0].dtype, load)


def _split(row: Row, tensor: Lazy) -> Lazy:
    def load() -> np.ndarray:
        array = tensor.load()
        if row.part is not None:
            array = np.split(array, _PARTS, axis=-1)[row.part]
        return _TO_TORCH[row.transform](array)

    return Lazy(row.shape, tensor.dtype, load)


def _check(state: State, shapes: Mapping[str, Shape]) -> None:
    missing = [
        f"missing {name} {shape}" for name, shape in shapes.items() if name not in state.tensors
    ]
    extra = [
        f"extra {name} {tensor.shape}"
        for name, tensor in state.tensors.items()
        if name not in shapes
    ]
    doubled = [f"doubled {name}" for name in state.doubled]
    misshapen = [
        f"misshapen {name}: file {state.tensors[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in state.tensors and state.tensors[name].shape != shape
    ]
    problems = misshapen + doubled + missing + extra
    if problems:
        counts = (
            f"{len(missing)} missing, {len(extra)} extra, {len(doubled)} doubled, "
            f"{len(misshapen)} misshapen"
        )
        raise UserError(
            f"{state.source}: does not fit its configuration ({counts}); check that it "
            f"is the file you meant: {'; '.join(problems)}"
        )
