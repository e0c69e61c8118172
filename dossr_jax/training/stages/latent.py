"""What the latent stages share: times, prompts, latents, the plain loss, the model's sampler."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field

from dossr_jax import method
from dossr_jax.config import DoSSRConfig
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import Schedule, make_schedule
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.systems import Run, system_of
from dossr_jax.training.stages.base import (
    Inputs,
    draw_normal,
    fold,
    mean_of,
    pre_restore_crops,
)

UNET_DECODER = ("unet.up.", "unet.norm_out.", "unet.conv_out.")
VAE_DECODER = ("vae.decoder.", "vae.post_quant_conv.")

Prompts = Literal["empty", "both"]
# Fields of several stages.
PROMPTS: Any = Field(
    default="empty",
    description="the stored prompt embeddings: the empty one, as published, or both equally often",
)
LORA_RANK: Any = Field(
    default=0, description="rank of low-rank adapters of the UNet's attention projections; 0: none"
)


def draw_times(keys: Array, low: int, high: int) -> Array:
    """Times (b,) int32, uniform from `low` to before `high`."""
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high))(fold(keys, Draw.TIME))


def draw_contexts(model: DoSSR, keys: Array, prompts: Prompts) -> Array:
    """Prompt embedding (b, m, d) of every sample."""
    empty = jnp.broadcast_to(model.negative_context[...], (len(keys), *model.context.shape))
    if prompts == "empty":
        return empty
    stored = jax.vmap(jax.random.bernoulli)(fold(keys, Draw.PROMPT))
    return jnp.where(stored[:, None, None], model.context[...][None], empty)


def encode_hr(model: DoSSR, inputs: Inputs) -> Array:
    """Scaled posterior samples (b, h, w, z), float32, of the HR images."""
    moments = model.vae.encode(2 * inputs.hr - 1).astype(jnp.float32)
    shape = (*moments.shape[1:3], model.config.vae.z_channels)
    return model.latents(moments, draw_normal(inputs.keys, Draw.POSTERIOR, shape))


def take_levels(schedule: Schedule, t: Array) -> tuple[Array, Array, Array]:
    """alpha, sigma, eta at times t (b,), each (b, 1, 1, 1)."""
    alpha, sigma, eta = (
        process.take_levels(jnp.asarray(table, jnp.float32), t)
        for table in (schedule.alpha, schedule.sigma, schedule.eta)
    )
    return alpha, sigma, eta


def diffusion_loss(
    model: DoSSR, x0: Array, hint: Array | None, context: Array, t: Array, eps: Array
) -> Array:
    """Plain diffusion (DDPM, arXiv 2006.11239): mean squared error (b,) of the predicted noise.

    Args:
      x0: scaled latents (b, h, w, z). hint: what the ControlNet sees, as x0; None leaves it out.
      context: (b, m, d). t: (b,) integers. eps: standard normal, as x0.
    """
    alpha, sigma, eta = take_levels(make_schedule(model.config.process).no_shift(), t)
    x = process.q_sample(x0, x0, alpha, sigma, eta, eps)
    return mean_of((model.predict_noise(x, t, context, hint).astype(jnp.float32) - eps) ** 2)


def sample_images(
    model: Any, inputs: Inputs, *, gradient_steps: int | None = None
) -> method.Restoration:
    """What the model's sampler, prompt and colour fix make of the LR images, in float32.

    This is its system's restoration of whole crops, of DoSSR from pre-restored images where these
    were made beforehand. gradient_steps: how many of the last steps gradients flow through; None
    means all.
    """
    config, system = model.config, system_of(model.config)
    assert system.table is not None
    size = jnp.array(inputs.lr.shape[1:3], jnp.int32)
    run = Run(
        size=jnp.broadcast_to(size, (len(inputs.hr), 2)),
        apply=method.whole,
        noise=method.KeyNoise(fold(inputs.keys, Draw.SAMPLING)),
        table=system.table(config, config.sampler),
        controls=method.Controls(
            context=model.context[...],
            negative_context=model.negative_context[...],
            fidelity=config.sampler.fidelity,
        ),
        fix=config.sampler.color_fix,
        gradient_steps=gradient_steps,
    )
    if not isinstance(config, DoSSRConfig):
        return system.restore(model, inputs.lr, run)
    pre = pre_restore_crops(model, inputs, clip=True).astype(jnp.float32)
    return method.restore_images(model, pre, run.size, **run.sampling())
