"""Low-rank adapters (LoRA, arXiv 2106.09685) of linear layers and convolutions.

They are parameters beside a network, under the paths of the layers that they change, and are
merged into its kernels where it runs: the network itself stays as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Factory

M = TypeVar("M", bound=nnx.Module)
Path = tuple[Any, ...]  # names and positions in lists
Shape = tuple[int, ...]


def is_adapted(path: Path) -> bool:
    """Whether adapters of a network of Stable Diffusion change the parameter at `path`.

    They change the kernels of all layers but those of the time embedding.
    """
    return path[-1] == "kernel" and "time" not in path


class Adapter(nnx.Module):
    """The change `down` x `up` of a kernel (..., i, o): (..., i, rank) and (rank, o).

    It starts at zero. In a convolution `down` has the size of the kernel and `up` is 1x1.
    """

    def __init__(self, make: Factory, kernel: Shape, rank: int):
        *window, c_in, c_out = kernel
        self.down = make.normal((*window, c_in, rank), 1 / rank)
        self.up = make.constant((rank, c_out), 0)


def make_adapters(make: Factory, module: nnx.Module, rank: int) -> nnx.Module:
    """Adapters for all layers of a network that :func:`is_adapted` names, under their paths."""
    params = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return _tree(make, {path[:-1]: p.shape for path, p in params if is_adapted(path)}, rank)


def _tree(make: Factory, kernels: Mapping[Path, Shape], rank: int) -> nnx.Module:
    if () in kernels:
        return Adapter(make, kernels[()], rank)
    parts: dict[Any, dict[Path, Shape]] = {}
    for path, shape in kernels.items():
        parts.setdefault(path[0], {})[path[1:]] = shape
    children = {part: _tree(make, inside, rank) for part, inside in parts.items()}
    if all(isinstance(part, int) for part in children):
        return nnx.List(children[i] for i in range(len(children)))
    return nnx.Dict(children)


def merge(module: M, adapters: nnx.Module, alpha: float) -> M:
    """A module of the same parameters but for kernels, kernel + alpha / rank (down x up).

    Args:
      module: has a layer at every path where `adapters` have an :class:`Adapter`.
      alpha: LoRA's; an adapter's own shape tells its rank.
    """
    graphdef, state = nnx.split(module)
    params = dict(nnx.to_flat_state(state))
    found = dict(nnx.to_flat_state(nnx.state(adapters, nnx.Param)))
    for (*layer, part), down in found.items():
        if part == "down":
            kernel = params[(*layer, "kernel")]
            merged = _merged(kernel[...], down[...], found[(*layer, "up")][...], alpha)
            params[(*layer, "kernel")] = kernel.replace(merged)
    return nnx.merge(graphdef, nnx.from_flat_state(params))


def _merged(kernel: Array, down: Array, up: Array, alpha: float) -> Array:
    """Of arrays as :class:`Adapter` has them, summed in float32 at least; in the kernel's dtype."""
    compute = jnp.promote_types(kernel.dtype, jnp.float32)
    # At full precision: the sums are weights.
    change = jnp.einsum(
        "...ir,ro->...io",
        down.astype(compute),
        up.astype(compute),
        precision=jax.lax.Precision.HIGHEST,
    )
    return (kernel.astype(compute) + alpha / up.shape[0] * change).astype(kernel.dtype)
