"""Parameters of a module by dotted name, and modules without arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.config import DoSSRConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.weights.safetensors import Tensors

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
    """Build the module `make(rngs)` with shapes in place of arrays."""
    return nnx.eval_shape(lambda: make(_OneKey()))


def abstract_model(
    config: DoSSRConfig, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> DoSSR:
    """Build a model with shapes in place of arrays."""
    return make_abstract(
        lambda rngs: DoSSR(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    )


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
    params = dict(names_and_params(model))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_names({name: param.shape for name, param in params.items()}, found, source)
    flat = {}
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = np.asarray(tensors[".".join(map(str, path))])
        flat[path] = param.replace(jnp.asarray(array, param.dtype))
    nnx.update(model, nnx.from_flat_state(flat))
