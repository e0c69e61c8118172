"""Autoencoder, from the best linear code of its patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from pydantic import Field

from dossr_jax.config import configuration
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.vae import VAE, posterior, posterior_mode, posterior_sample
from dossr_jax.training.samples import Inputs, draw_normal
from dossr_jax.training.stages.base import Metrics, Stage, mean_of, psnr
from dossr_jax.training.stages.linear_code import start_from_linear_code


@configuration
class VAEStage(Stage):
    """`kl_weight`: of the posterior's KL divergence to a unit normal."""

    name: Literal["vae"] = "vae"
    kl_weight: Annotated[float, Field(ge=0)] = 3e-4
    needs_lr: ClassVar[bool] = False

    def learns(self, name: str) -> bool:
        return name.startswith("vae.")

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """L1 of the image and of its differences, plus the posterior's KL to a unit normal.

        The differences give weight to edges and texture, which are few pixels among many flat ones.
        """
        image = 2 * inputs.hr - 1
        moments = model.vae.encode(image).astype(jnp.float32)
        mean, logvar = posterior(moments)
        noise = draw_normal(inputs.keys, Draw.POSTERIOR, mean.shape[1:])
        out = model.vae.decode(posterior_sample(moments, noise))
        error = image - out.astype(jnp.float32)
        edges = sum(mean_of(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
        kl = 0.5 * mean_of(mean**2 + jnp.exp(logvar) - 1 - logvar)
        loss = mean_of(jnp.abs(error)) + 0.5 * edges + self.kl_weight * kl
        return loss, {"psnr": psnr((out + 1) / 2, inputs.hr), "kl": kl}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        moments, _ = model.encode(inputs.hr)
        return inputs.hr, model.decode(model.latents(moments.astype(jnp.float32)))

    def initialize(self, model: DoSSR, crops: Callable[[], np.ndarray]) -> None:
        start_from_linear_code(model, crops())

    def finalize(self, model: DoSSR, crops: Callable[[], np.ndarray]) -> None:
        set_scale_factor(model, crops())


def set_scale_factor(model: DoSSR, images: np.ndarray) -> None:
    """Set the VAE's scale factor so that the latents of `images` (b, h, w, 3) uint8 have unit
    standard deviation."""

    @nnx.jit
    def encode(vae: VAE, images: jax.Array) -> jax.Array:
        return vae.encode(2 * images.astype(jnp.float32) / 255 - 1)

    factor = round(1 / float(jnp.std(posterior_mode(encode(model.vae, jnp.asarray(images))))), 5)
    vae = dataclasses.replace(model.config.vae, scale_factor=factor)
    model.config = dataclasses.replace(model.config, vae=vae)
