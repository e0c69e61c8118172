"""Diffusion prior: the UNet alone, on latents of HR images."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax.numpy as jnp
from jax import Array

from dossr_jax.config import DoSSRConfig, configuration
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training.stages import latent
from dossr_jax.training.stages.base import Inputs, Metrics, Stage, draw_normal


@configuration
class PriorStage(Stage):
    """The UNet learns."""

    name: Literal["prior"] = "prior"
    prompts: latent.Prompts = latent.PROMPTS
    needs_lr: ClassVar[bool] = False

    def learns(self, name: str) -> bool:
        return name.startswith("unet.")

    def time_range(self, model: DoSSRConfig) -> tuple[int, int]:
        return 0, model.process.timesteps

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        x0 = latent.encode_hr(model, inputs)
        if t is None:
            t = latent.draw_times(inputs.keys, *self.time_range(model.config))
        eps = draw_normal(inputs.keys, Draw.NOISE, x0.shape[1:])
        context = latent.draw_contexts(model, inputs.keys, self.prompts)
        return latent.diffusion_loss(model, x0, None, context, t, eps), {}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        """The noised image at times t, and its denoising in one step."""
        assert t is not None
        moments, _ = model.encode(inputs.hr)
        x0 = model.latents(moments.astype(jnp.float32))
        schedule = make_schedule(model.config.process).no_shift()
        alpha, sigma, eta = latent.take_levels(schedule, t)
        x = process.q_sample(
            x0, x0, alpha, sigma, eta, draw_normal(inputs.keys, Draw.SHOW, x0.shape[1:])
        )
        context = jnp.broadcast_to(model.context[...], (len(x), *model.context.shape))
        eps = model.predict_noise(x, t, context, None).astype(jnp.float32)
        return model.decode(x), model.decode(process.eps_to_x0(x, eps, alpha, sigma))
