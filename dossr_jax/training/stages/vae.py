"""Autoencoder, from the best linear code of its patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from pydantic import Field, NonNegativeFloat

from dossr_jax.config import VAEConfig, configuration
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.layers import space_to_depth
from dossr_jax.models.vae import VAE, posterior, posterior_mode, posterior_sample
from dossr_jax.training.stages.base import Inputs, Metrics, Stage, draw_normal, mean_of, psnr

_START_LOGVAR = -6.0


@configuration
class VAEStage(Stage):
    """The autoencoder learns."""

    name: Literal["vae"] = "vae"
    kl_weight: NonNegativeFloat = Field(
        default=3e-4, description="weight of the posterior's KL divergence to a unit normal"
    )
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
        if has_linear_code(model.config.vae):
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


def has_linear_code(config: VAEConfig) -> bool:
    """Whether an autoencoder can be a linear code: one level, 4 channels in a norm group for every
    latent. Others start from random weights."""
    width = config.base_channels // config.norm_groups
    return len(config.channel_mult) == 1 and width >= 4 and config.z_channels <= config.norm_groups


def start_from_linear_code(model: DoSSR, images: np.ndarray) -> None:
    """Make a fresh one-level autoencoder compute the best linear code of its patches.

    The principal components of patches are worth 31 dB at once where random weights take hours
    to get there; training then starts with what is not linear. Latents get deviations
    proportional to the components' to the power 1/4: equal ones would make the process spend as
    much on faint detail as on brightness, and plain ones would leave detail below the noise of a
    sampler's last steps.

    The path through the last norm and SiLU is kept linear by giving every latent a norm group of
    its own, (p, -p, K, -K): the constants fix the norm's deviation, and silu(u) - silu(-u) = u.

    Args:
      model: from params.make_model; its residual branches are zero, and it has a linear code.
      images: (b, h, w, 3) uint8, sides multiples of the patch.
    """
    config = model.config.vae
    z, block = config.z_channels, config.patch_size
    width = config.base_channels // config.norm_groups
    patches = np.asarray(
        space_to_depth(2 * jnp.asarray(images, jnp.float32) / 255 - 1, block), np.float64
    )
    patches = patches.reshape(-1, patches.shape[-1])
    center = patches.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    deviation, axes = np.sqrt(values[::-1][:z]), axes[:, ::-1][:, :z]
    wanted = deviation**0.25 / np.sqrt(np.mean(deviation**0.5))
    anchor = 8 * wanted.max()
    gain = np.sqrt((anchor**2 + wanted**2) / 2)  # what the norm divides by
    plus = width * np.arange(z)

    def spread(conv: Any, matrix: np.ndarray, offset: np.ndarray) -> None:
        """First convolution: group g starts as (p_g, -p_g, K, -K) with p = x matrix + offset."""
        kernel, bias = np.array(conv.kernel[...]), np.array(conv.bias[...])
        taken = plus[:, None] + np.arange(width)
        kernel[..., taken], bias[taken] = 0, 0
        for channel, sign in ((plus, 1), (plus + 1, -1)):
            kernel[1, 1][:, channel], bias[channel] = sign * matrix, sign * offset
        bias[plus + 2], bias[plus + 3] = anchor, -anchor
        conv.kernel[...], conv.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)

    def collect(conv: Any, matrix: np.ndarray, offset: np.ndarray) -> None:
        """Last convolution: p matrix + offset out of the groups."""
        kernel = np.zeros_like(conv.kernel[...])
        kernel[1, 1, plus], kernel[1, 1, plus + 1] = gain[:, None] * matrix, -gain[:, None] * matrix
        conv.kernel[...] = jnp.asarray(kernel)
        conv.bias[...] = jnp.asarray(offset, jnp.float32)

    encoder, decoder = model.vae.encoder, model.vae.decoder
    inward = axes * (wanted / deviation)
    spread(encoder.conv_in, inward, -center @ inward)
    mean = np.eye(z, 2 * z)
    collect(encoder.conv_out, mean, np.repeat([0.0, _START_LOGVAR], z))
    spread(decoder.conv_in, np.eye(z), np.zeros(z))
    collect(decoder.conv_out, (axes * (deviation / wanted)).T, center)
    convs: tuple[Any, ...] = encoder.quant_conv, decoder.post_quant_conv
    for conv in convs:
        conv.kernel[...] = jnp.eye(conv.kernel.shape[-1])[None, None]
