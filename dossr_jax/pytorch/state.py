"""Named tensors that are read only when asked for, and the one engine that applies a table.

A conversion is a chain of renamings and transforms over :class:`State`; nothing is loaded until
the writer asks for one tensor after the other, so that a checkpoint never lies in memory whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.pytorch.tables import Row
from dossr_jax.weights import Lazy, check_names

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class State:
    """Tensors by name. `source` is the file for messages, `doubled` names that collided."""

    source: str
    tensors: Mapping[str, Lazy]
    doubled: Sequence[str] = ()

    def rename(self, new_name: Callable[[str], str]) -> State:
        """Rename all tensors; the second of two that get the same name is listed as doubled."""
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
        return State(self.source, tensors, doubled)

    def select(self, keep: Callable[[str], bool]) -> State:
        """Keep the tensors for whose names `keep` is true."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if keep(name)}
        return State(self.source, tensors, self.doubled)

    def below(self, prefix: str) -> State:
        """Keep the tensors whose names start with `prefix`, and take it off."""
        return self.select(lambda name: name.startswith(prefix)).rename(
            lambda name: name[len(prefix) :]
        )

    def has(self, prefix: str) -> bool:
        """Tell whether the name of any tensor starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.tensors)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor that the configuration is read from.

        Raises:
          UserError: there is no such tensor.
        """
        if name not in self.tensors:
            raise UserError(
                f"{self.source}: not the kind of checkpoint it should be, it has no "
                f"{name}; check the path"
            )
        return self.tensors[name].shape


_TO_OURS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda a: a,
    "linear": lambda a: a.T,
    "conv": lambda a: a.transpose(2, 3, 1, 0),
    "conv1x1_linear": lambda a: a[:, :, 0, 0].T,
    "expert_conv": lambda a: a.transpose(0, 3, 4, 2, 1),
}
_TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda a: a,
    "linear": lambda a: a.T,
    "conv": lambda a: a.transpose(3, 2, 0, 1),
    "conv1x1_linear": lambda a: a.T[:, :, None, None],
    "expert_conv": lambda a: a.transpose(0, 4, 3, 1, 2),
}


def _our_shape(row: Row) -> Shape:
    return _TO_OURS[row.transform](np.broadcast_to(0, row.shape)).shape


def _check(state: State, wanted: Mapping[str, Shape]) -> None:
    found = {name: tensor.shape for name, tensor in state.tensors.items()}
    check_names(wanted, found, state.source, state.doubled)


def to_ours(table: Iterable[Row], state: State) -> dict[str, Lazy]:
    """Turn PyTorch's tensors into ours, by a table that must fit exactly.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key, with both shapes.
    """
    grouped: dict[str, list[Row]] = {}
    for row in table:
        grouped.setdefault(row.ours, []).append(row)
    _check(state, {row.torch: row.shape for rows in grouped.values() for row in rows})
    return {ours: _join(rows, state.tensors) for ours, rows in grouped.items()}


def _join(rows: list[Row], tensors: Mapping[str, Lazy]) -> Lazy:
    """One of our tensors: a row's, or those of several rows side by side along the last axis."""

    def load() -> np.ndarray:
        arrays = [_TO_OURS[row.transform](tensors[row.torch].load()) for row in rows]
        return np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]

    return Lazy(_joined_shape(rows), tensors[rows[0].torch].dtype, load)


def _joined_shape(rows: list[Row]) -> Shape:
    shape = _our_shape(rows[0])
    if len(rows) > 1:
        shape = (*shape[:-1], sum(_our_shape(row)[-1] for row in rows))
    return shape


def to_torch(table: Iterable[Row], state: State) -> dict[str, Lazy]:
    """Turn our tensors into PyTorch's: the inverse of :func:`to_ours`, bit for bit.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    grouped: dict[str, list[Row]] = {}
    for row in table:
        grouped.setdefault(row.ours, []).append(row)
    _check(state, {ours: _joined_shape(rows) for ours, rows in grouped.items()})
    return {
        row.torch: tensor
        for ours, rows in grouped.items()
        for row, tensor in zip(rows, _split(rows, state.tensors[ours]), strict=True)
    }


def _split(rows: list[Row], tensor: Lazy) -> Iterator[Lazy]:
    """The tensors of several rows that lie side by side in one of ours."""
    start = 0
    for row in rows:
        stop = start + (_our_shape(row)[-1] if len(rows) > 1 else 0)

        def load(row: Row = row, start: int = start, stop: int = stop) -> np.ndarray:
            array = tensor.load()
            return _TO_TORCH[row.transform](array[..., start:stop] if stop else array)

        yield Lazy(row.shape, tensor.dtype, load)
        start = stop
