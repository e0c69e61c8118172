"""A table is a list of rows: a PyTorch tensor, ours, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Naming = Literal["ldm", "diffusers"]


class Row(NamedTuple):
    """One PyTorch tensor and where it goes.

    `transform`: "copy"; "linear" (o, i) -> (i, o); "conv" (o, i, h, w) -> (h, w, i, o);
    "conv1x1_linear" (o, i, 1, 1) -> (i, o); "expert_conv" (k, o, i, h, w) -> (k, h, w, i, o).
    `shape` is PyTorch's. Rows with the same `ours` are parts of one tensor of ours, side by side
    along its last axis.
    """

    torch: str
    ours: str
    transform: Literal["copy", "linear", "conv", "conv1x1_linear", "expert_conv"]
    shape: tuple[int, ...]


def norm(torch: str, ours: str, channels: int) -> list[Row]:
    """List the rows of a group or layer norm."""
    return [
        Row(f"{torch}.weight", f"{ours}.scale", "copy", (channels,)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (channels,)),
    ]


def conv(torch: str, ours: str, c_in: int, c_out: int, size: int = 3) -> list[Row]:
    """List the rows of a convolution of `size` x `size`."""
    return [
        Row(f"{torch}.weight", f"{ours}.kernel", "conv", (c_out, c_in, size, size)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (c_out,)),
    ]


def linear(torch: str, ours: str, d_in: int, d_out: int, *, bias: bool = True) -> list[Row]:
    """List the rows of a linear layer."""
    rows = [Row(f"{torch}.weight", f"{ours}.kernel", "linear", (d_out, d_in))]
    return rows + [Row(f"{torch}.bias", f"{ours}.bias", "copy", (d_out,))] * bias


def res(
    torch: str,
    ours: str,
    names: Mapping[str, str],
    c_in: int,
    c_out: int,
    time_dim: int | None = None,
) -> list[Row]:
    """List the rows of a residual block; `names` are PyTorch's where they differ from ours."""

    def pair(name: str) -> tuple[str, str]:
        return f"{torch}.{names.get(name, name)}", f"{ours}.{name}"

    rows = norm(*pair("norm1"), c_in) + conv(*pair("conv1"), c_in, c_out)
    if time_dim is not None:
        rows += linear(*pair("time"), time_dim, c_out)
    rows += norm(*pair("norm2"), c_out) + conv(*pair("conv2"), c_out, c_out)
    return rows + (conv(*pair("shortcut"), c_in, c_out, 1) if c_in != c_out else [])


def with_prefix(rows: Iterable[Row], torch: str, ours: str) -> list[Row]:
    """Put something in front of both names of every row."""
    return [row._replace(torch=torch + row.torch, ours=ours + row.ours) for row in rows]
