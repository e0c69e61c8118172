"""Parameters of a module by dotted name, and modules without arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from dossr_jax.errors import UserError
from dossr_jax.models.layers import Shapes
from dossr_jax.weights.safetensors import Tensors

Shape = tuple[int, ...]
M = TypeVar("M", bound=nnx.Module)
# Handing over many arrays at once is several times as fast; no more of them are in memory twice.
_WAITING_BYTES = 2**25


def names_and_params(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """(dotted name, parameter) of every parameter of a module, in a fixed order."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield ".".join(map(str, path)), param


def make_abstract(make: Callable[[Any], M]) -> M:
    """Build the module `make(rngs)` with shapes in place of arrays."""
    module = make(Shapes())
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        if isinstance(variable.get_raw_value(), jax.Array):  # no layer of a Factory
            variable.set_value(jax.ShapeDtypeStruct(variable.shape, variable.dtype))
    return module


def keep_dtypes(module: nnx.Module, tensors: Mapping[str, Any]) -> None:
    """Give the parameters of an abstract module the dtypes of the tensors that will fill them."""
    for name, param in names_and_params(module):
        if name in tensors:
            param.set_value(jax.ShapeDtypeStruct(param.shape, tensors[name].dtype))


def check_names(
    wanted: Mapping[str, Shape],
    found: Mapping[str, Shape],
    source: str,
    doubled: Sequence[str] = (),
) -> None:
    """Refuse tensors that are not those wanted, by name and shape.

    `doubled` describes tensors that share a name with another one.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen name, the last with both
        shapes.
    """
    problems = {
        "misshapen": [
            f"{name}: file {found[name]}, expected {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
        "doubled": doubled,
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in found],
        "extra": [f"{name} {shape}" for name, shape in found.items() if name not in wanted],
    }
    if any(problems.values()):
        order = ("missing", "extra", "doubled", "misshapen")
        counts = ", ".join(f"{len(problems[kind])} {kind}" for kind in order)
        lines = [f"{kind} {name}" for kind, names in problems.items() for name in names]
        raise UserError(
            f"{source}: does not fit its configuration ({counts}); check that it "
            f"is the file you meant: {'; '.join(lines)}"
        )


def fill(model: nnx.Module, tensors: Tensors, source: str) -> None:
    """Put tensors into a (possibly abstract) module, cast to the dtypes of its parameters.

    Raises:
      UserError: listing every missing, extra and misshapen name, the last with both shapes.
    """
    filler(model, tensors, source)()


def filler(model: nnx.Module, tensors: Tensors, source: str) -> Callable[[], None]:
    """What fills a module: the parameters that it has now, if others should take their places.

    Raises:
      UserError: as :func:`fill`; no tensor is read for that.
    """
    params = dict(names_and_params(model))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_names({name: param.shape for name, param in params.items()}, found, source)

    def read() -> None:
        waiting: dict[str, np.ndarray] = {}
        size = 0
        for name, param in params.items():
            waiting[name] = np.asarray(np.asarray(tensors[name]), param.dtype, order="C")
            size += waiting[name].nbytes
            if size > _WAITING_BYTES:
                _place(params, waiting)
                waiting, size = {}, 0
        _place(params, waiting)

    return read


def _place(params: Mapping[str, nnx.Param], arrays: Mapping[str, np.ndarray]) -> None:
    """Make arrays the values of their parameters, on the device."""
    for name, array in jax.device_put(arrays).items():
        params[name].set_value(array)
