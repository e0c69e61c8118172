"""Parameters by dotted name: first values, which learn, LoRA, how they make a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel, systems, weights
from dossr_jax.config import LatentConfig, ModelConfig, SamplerConfig, TrainConfig, VAEConfig
from dossr_jax.errors import UserError
from dossr_jax.systems.task import for_task
from dossr_jax.systems.task.config import TaskConfig
from dossr_jax.training.stages.base import Read, Stage

Params = dict[str, Any]  # arrays, or their shapes, by dotted name

_LORA = "lora."
_LORA_A, _LORA_B = ".a", ".b"
_PROJECTIONS = ("to_q.kernel", "to_k.kernel", "to_v.kernel", "to_out.kernel")


def learns(name: str, config: TrainConfig) -> bool:
    """Whether a run trains the parameter of this name; all others are frozen."""
    return is_lora(name) or Stage.of(config).learns(name)


def is_lora(name: str) -> bool:
    """Whether a parameter is a low-rank factor, which the model itself does not have."""
    return name.startswith(_LORA) and name.endswith((_LORA_A, _LORA_B))


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
    merged = {name: value for name, value in params.items() if not is_lora(name)}
    for name, a in params.items():
        if is_lora(name) and name.endswith(_LORA_A):
            target = name.removeprefix(_LORA).removesuffix(_LORA_A)
            b = params[f"{_LORA}{target}{_LORA_B}"]
            merged[target] = merged[target] + (a @ b).astype(merged[target].dtype)
    return merged


def abstract(config: TrainConfig) -> Any:
    """The run's module, as the run computes it, with shapes in place of arrays."""
    dtype, remat = jnp.dtype(config.parallel.dtype), config.parallel.remat
    make = Stage.of(config).make_module
    return weights.make_abstract(
        lambda rngs: make(config.model, remat=remat, dtype=dtype, rngs=rngs)
    )


def shapes_of(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    return {name: tuple(param.shape) for name, param in weights.names_and_params(model)}


def build(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The model with the given parameters, LoRA factors merged."""
    flat: dict[Any, Any] = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): value
        for name, value in with_lora(params).items()
    }
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def all_gather(params: Mapping[str, Array], config: TrainConfig, mesh: Mesh) -> Params:
    """Parameters in the compute dtype, whole on every device.

    They are cast first, so that devices exchange fewer bytes. The gradient of this gathering
    scatters: each device receives the sum for its own shard of the parameters.
    """
    dtype, whole = jnp.dtype(config.parallel.dtype), parallel.replicated(mesh)
    return {
        name: jax.lax.with_sharding_constraint(value.astype(dtype), whole)
        for name, value in params.items()
    }


def ema_model(config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh, state: Any) -> Any:
    """The model with the EMA weights of a TrainState, or its last ones without EMA. Under jit."""
    params = state.frozen | (state.ema or state.learn)
    return build(graphdef, all_gather(params, config, mesh))


def make_model(config: ModelConfig, seed: int, *, zero_output: bool) -> Any:
    """A model to train from scratch.

    The two prompt embeddings, which no text tower made, are fixed random vectors. Residual
    branches start at zero, and with `zero_output` the UNet's output too, so that the first steps
    are gentle; behind a zero output, however, a ControlNet alone would never learn.
    """
    model: Any = systems.system_of(config).module(config, rngs=nnx.Rngs(seed))
    for name, param in weights.names_and_params(model):
        residual = name.endswith((".conv2.kernel", ".proj_out.kernel"))
        output = zero_output and name == "unet.conv_out.kernel"
        if (residual and name.startswith(("unet.", "vae."))) or output:
            param[...] = jnp.zeros_like(param[...])
    prompts = isinstance(config, LatentConfig)
    for i, param in enumerate((model.context, model.negative_context) if prompts else ()):
        draw = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), param.shape)
        # Rounded, so that a model file in bfloat16 stores them exactly.
        param[...] = draw.astype(jnp.bfloat16).astype(param.dtype)
    return model


def open_start(
    config: TrainConfig, init: Path | None, crops: Callable[[], np.ndarray]
) -> tuple[Any, Read]:
    """Configuration and parameters, by name, of the model that a run starts from.

    Its arguments are those of :func:`dossr_jax.training.state.start_run`.

    Raises:
      UserError: the file is damaged or holds another architecture.
    """
    stage = Stage.of(config)
    if init is None:
        model = make_model(config.model, config.seed, zero_output=stage.zero_output)
        stage.initialize(model, crops)
        values = {name: np.asarray(p[...]) for name, p in weights.names_and_params(model)}
        return stage.adapt(config.model, model.config, values.__getitem__)
    start = systems.Model(*systems.open_model(init))
    if isinstance(config.model, TaskConfig):
        start = for_task(start, config.model.task)
    stored, tensors = start.config, start.tensors
    # The text tower takes no part in training: prompts are stored as embeddings.
    found = dataclasses.replace(stored, text=None) if hasattr(stored, "text") else stored
    if not same_architecture(found, config.model):
        raise UserError(
            f"{init}: its networks are not the configuration's; give the file that the stage "
            "before wrote, or one that fits"
        )
    shapes = shapes_of(systems.abstract_model(found))
    unused = ("text.", systems.BUFFER_PREFIX)
    held = {name: t.shape for name, t in tensors.items() if not name.startswith(unused)}
    weights.check_names(shapes, held, str(init))
    return stage.adapt(config.model, found, lambda name: tensors[name].load())


def same_architecture(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether models have the same networks; latents' scale, prompts and sampler may differ."""

    def networks(config: Any) -> ModelConfig:
        fields: dict[str, Any] = {"sampler": SamplerConfig(steps=1)}
        if isinstance(config, LatentConfig):
            vae = dataclasses.replace(config.vae, scale_factor=VAEConfig.scale_factor)
            fields |= {"vae": vae, "text": None, "prompt": "", "negative_prompt": ""}
        return dataclasses.replace(config, **fields)

    return a.system == b.system and networks(a) == networks(b)
