"""Parameters of a module by dotted name, and modules without arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.config import DoSSRConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR

Shape = tuple[int, ...]
M = TypeVar("M", bound=nnx.Module)


def names_and_params(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """(dotted name, parameter) of every parameter of a module, in a fixed order."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield ".".join(map(str, path)), param


class _OneKey:
    """Stands in for nnx.Rngs where nothing is drawn: the counters of a real one, updated under
    tracing for every layer, take a minute at the size of SD."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def make_abstract(make: Callable[[Any], M]) -> M:
    """The module that `make(rngs)` builds, with shapes in place of arrays: no time, no memory."""
    return nnx.eval_shape(lambda: make(_OneKey()))


def abstract_model(config: DoSSRConfig, *, dtype: Any, param_dtype: Any) -> DoSSR:
    """The model with shapes in place of arrays."""
    return make_abstract(
        lambda rngs: DoSSR(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    )


def check_names(
    wanted: Mapping[str, Shape], found: Mapping[str, Shape | None], source: str
) -> None:
    """Refuse parameters that are not those wanted, by name and shape.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"extra {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"misshapen {name}: file {found[name]}, model {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise UserError(f"{source}: does not fit its configuration: " + "; ".join(problems))


def fill(
    model: nnx.Module, read: Callable[[str], np.ndarray], names: set[str], source: str
) -> None:
    """Put the arrays `read(name)` into a (possibly abstract) module, cast to its param dtypes.

    Raises:
      UserError: listing every missing, extra and misshapen name, with both shapes.
    """
    params = dict(names_and_params(model))
    arrays = {}
    found: dict[str, Shape | None] = dict.fromkeys(names)
    for name in params:
        if name not in names:
            continue
        array = read(name)
        found[name] = array.shape
        if array.shape == params[name].shape:
            arrays[name] = jnp.asarray(array, params[name].dtype)
    check_names({name: param.shape for name, param in params.items()}, found, source)
    state = nnx.state(model, nnx.Param)
    flat = {
        path: param.replace(arrays[".".join(map(str, path))])
        for path, param in nnx.to_flat_state(state)
    }
    nnx.update(model, nnx.from_flat_state(flat))
