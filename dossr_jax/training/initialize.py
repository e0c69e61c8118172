"""Weights that a run starts from: random ones, or a model file, adapted by the stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, TrainConfig, VAEConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training.params import abstract, shapes_of
from dossr_jax.training.stages.base import Read, Stage


def make_model(config: DoSSRConfig, seed: int, *, zero_output: bool) -> DoSSR:
    """A model to train from scratch.

    The two prompt embeddings, which no text tower made, are fixed random vectors. Residual
    branches start at zero, and with `zero_output` the UNet's output too, so that the first steps
    are gentle; behind a zero output, however, a ControlNet alone would never learn.
    """
    model = DoSSR(config, rngs=nnx.Rngs(seed))
    for name, param in weights.names_and_params(model):
        residual = name.endswith((".conv2.kernel", ".proj_out.kernel"))
        output = zero_output and name == "unet.conv_out.kernel"
        if (residual and name.startswith(("unet.", "vae."))) or output:
            param[...] = jnp.zeros_like(param[...])
    for i, param in enumerate((model.context, model.negative_context)):
        draw = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), param.shape)
        # Exact in the bfloat16 of the file that ships.
        param[...] = draw.astype(jnp.bfloat16).astype(param.dtype)
    return model


def open_start(
    config: TrainConfig, init: Path | None, crops: Callable[[], np.ndarray]
) -> tuple[DoSSRConfig, Read]:
    """Configuration and parameters, by name, of the model that a run starts from.

    Args are those of :func:`dossr_jax.training.state.start_run`.

    Raises:
      UserError: the file is damaged or holds another architecture.
    """
    stage = Stage.of(config)
    start = stage.starting_config(config.model)
    if init is None:
        model = make_model(start, config.seed, zero_output=stage.zero_output)
        stage.initialize(model, crops)
        values = {name: np.asarray(p[...]) for name, p in weights.names_and_params(model)}
        return stage.adapt(config.model, model.config, values.__getitem__)
    stored, tensors = weights.open_model(init)
    # The text tower takes no part in training: prompts are stored as embeddings.
    found = dataclasses.replace(stored, text=None)
    if not any(same_architecture(found, fits) for fits in (config.model, start)):
        raise UserError(
            f"{init}: its networks are not the configuration's; give the file that the stage "
            "before wrote, or one that fits"
        )
    shapes = shapes_of(abstract(found, config))
    unused = ("text.", weights.BUFFER_PREFIX)
    held = {name: t.shape for name, t in tensors.items() if not name.startswith(unused)}
    weights.check_names(shapes, held, str(init))
    return stage.adapt(config.model, found, lambda name: tensors[name].load())


def same_architecture(a: DoSSRConfig, b: DoSSRConfig) -> bool:
    """Whether models have the same networks; latents' scale, prompts and sampler may differ."""

    def bare(config: DoSSRConfig) -> tuple[Any, ...]:
        vae = dataclasses.replace(config.vae, scale_factor=VAEConfig.scale_factor)
        return (
            config.unet,
            vae,
            config.rrdb,
            config.refiner,
            config.process,
            config.shared_encoder,
            config.context_length,
        )

    return bare(a) == bare(b)
