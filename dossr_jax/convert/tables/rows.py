"""A table is a list of rows: a PyTorch tensor, ours, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Naming = Literal["ldm", "diffusers"]
Names = Mapping[str, str]


class Row(NamedTuple):
    """One PyTorch tensor and where it goes.

    `transform`: "copy"; "linear" (o, i) -> (i, o); "conv" (o, i, h, w) -> (h, w, i, o);
    "conv1x1_linear" (o, i, 1, 1) -> (i, o). `shape` is PyTorch's. `part` 0, 1, 2 where our tensor
    is three of PyTorch's side by side along the last axis.
    """

    torch: str
    ours: str
    transform: Literal["copy", "linear", "conv", "conv1x1_linear"]
    shape: tuple[int, ...]
    part: int | None = None


def norm(torch: str, ours: str, channels: int) -> list[Row]:
    """A group or layer norm."""
    return [
        Row(f"{torch}.weight", f"{ours}.scale", "copy", (channels,)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (channels,)),
    ]


def conv(torch: str, ours: str, c_in: int, c_out: int, size: int = 3) -> list[Row]:
    """A convolution of `size` x `size`."""
    return [
        Row(f"{torch}.weight", f"{ours}.kernel", "conv", (c_out, c_in, size, size)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (c_out,)),
    ]


def linear(
    torch: str, ours: str, d_in: int, d_out: int, *, bias: bool = True, part: int | None = None
) -> list[Row]:
    """A linear layer; `part` as in :class:`Row`."""
    rows = [Row(f"{torch}.weight", f"{ours}.kernel", "linear", (d_out, d_in), part)]
    return rows + [Row(f"{torch}.bias", f"{ours}.bias", "copy", (d_out,), part)] * bias


def res(
    torch: str, ours: str, names: Names, c_in: int, c_out: int, time_dim: int | None = None
) -> list[Row]:
    """A residual block whose layers PyTorch has under `names`."""

    def pair(name: str) -> tuple[str, str]:
        return f"{torch}.{names[name]}", f"{ours}.{name}"

    rows = norm(*pair("norm1"), c_in) + conv(*pair("conv1"), c_in, c_out)
    if time_dim is not None:
        rows += linear(*pair("time"), time_dim, c_out)
    rows += norm(*pair("norm2"), c_out) + conv(*pair("conv2"), c_out, c_out)
    return rows + (conv(*pair("shortcut"), c_in, c_out, 1) if c_in != c_out else [])


def with_prefix(rows: Sequence[Row], torch: str, ours: str) -> list[Row]:
    """The same rows with something in front of both names."""
    return [row._replace(torch=torch + row.torch, ours=ours + row.ours) for row in rows]
