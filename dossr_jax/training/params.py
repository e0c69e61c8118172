"""Parameters by dotted name, as in a model file: which learn, how they make a model, LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel, weights
from dossr_jax.config import DoSSRConfig, TrainConfig
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training.stages.base import Stage

Params = dict[str, Any]  # arrays, or their shapes, by dotted name

_LORA = "lora."
_LORA_A, _LORA_B = ".a", ".b"
_PROJECTIONS = ("to_q.kernel", "to_k.kernel", "to_v.kernel", "to_out.kernel")


def learns(name: str, config: TrainConfig) -> bool:
    """Whether a run trains the parameter of this name; all others are frozen."""
    return name.startswith(_LORA) or Stage.of(config).learns(name)


def lora_shapes(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the low-rank factors (LoRA, arXiv 2106.09685) of a model's parameters.

    A projection W (i, o) of the UNet's attention that does not learn itself gets A (i, rank) and
    B (rank, o); W + A B takes its place.
    """
    factors = {}
    for name, shape in shapes.items():
        if rank and name.startswith("unet.") and name.endswith(_PROJECTIONS):
            factors[f"{_LORA}{name}{_LORA_A}"] = (shape[0], rank)
            factors[f"{_LORA}{name}{_LORA_B}"] = (rank, shape[1])
    return factors


def lora_start(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """First value of a factor: A random, B zero, so that the model starts unchanged."""
    if name.endswith(_LORA_B):
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng([seed, *name.encode()])
    return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)


def with_lora(params: Mapping[str, Any]) -> Params:
    """Parameters with every low-rank update added to its projection, and the factors gone."""
    merged = {name: value for name, value in params.items() if not name.startswith(_LORA)}
    for name, a in params.items():
        if name.startswith(_LORA) and name.endswith(_LORA_A):
            target = name[len(_LORA) : -len(_LORA_A)]
            b = params[name[: -len(_LORA_A)] + _LORA_B]
            merged[target] = merged[target] + (a @ b).astype(merged[target].dtype)
    return merged


def make_graphdef(config: TrainConfig) -> nnx.GraphDef:
    """Structure of the model, computing in the run's dtype and rematerialising as it says."""
    return nnx.split(abstract(config.model, config))[0]


def abstract(model: DoSSRConfig, config: TrainConfig) -> DoSSR:
    """The model of a run with shapes in place of arrays."""
    return weights.make_abstract(
        lambda rngs: DoSSR(
            model,
            dtype=jnp.dtype(config.parallel.dtype),
            remat=config.parallel.remat,
            rngs=rngs,
        )
    )


def shapes_of(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    return {name: tuple(param.shape) for name, param in weights.names_and_params(model)}


def build(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> DoSSR:
    """The model with the given parameters, LoRA factors merged."""
    tree: dict[Any, Any] = {}
    for name, value in with_lora(params).items():
        *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return nnx.merge(graphdef, nnx.State(tree))


def all_gather(params: Mapping[str, Array], config: TrainConfig, mesh: Mesh) -> Params:
    """Parameters in the compute dtype, whole on every device.

    Cast first, so that devices exchange the small form. Learnt parameters lie split over `fsdp`;
    the gradient of this is a sum that each device receives its own part of.
    """
    dtype, whole = jnp.dtype(config.parallel.dtype), parallel.replicated(mesh)
    return {
        name: jax.lax.with_sharding_constraint(value.astype(dtype), whole)
        for name, value in params.items()
    }


def ema_model(config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh, state: Any) -> DoSSR:
    """The model with the EMA weights of a TrainState, or its last ones without EMA. Under jit."""
    averaged = state.ema or state.learn
    return build(graphdef, all_gather({**state.frozen, **averaged}, config, mesh))
