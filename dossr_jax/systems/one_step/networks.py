"""The networks of Stable Diffusion 2.1 and the adapters that the one-step systems add to them."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Factory, LayerOptions
from dossr_jax.models.lora import make_adapters, merge
from dossr_jax.models.rrdbnet import UPSCALE, enlarge
from dossr_jax.models.text_encoder import TextEncoder
from dossr_jax.models.unet import Remat, UNet
from dossr_jax.models.vae import VAE, posterior_mode, posterior_sample
from dossr_jax.systems.one_step.config import OneStepConfig, OSEDiffConfig, PiSASRConfig


class OneStep(nnx.Module):
    """UNet, VAE, text tower, and the embeddings of the two stored prompts.

    Attributes `context` and `negative_context` are (context_length, context_dim) each; only the
    first is read.
    """

    def __init__(
        self, config: OneStepConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        self.config = config
        self.unet = UNet(config.unet, remat=remat, **options)
        self.vae = VAE(config.vae, **options)
        self.text = None if config.text is None else TextEncoder(config.text, **options)
        shape = (config.context_length, config.unet.context_dim)
        make = Factory(**options)
        self.context = make.constant(shape, 0)
        self.negative_context = make.constant(shape, 0)

    def pre_restore(self, lr: Array) -> Array:
        """LR image (b, h, w, 3) in [0, 1] -> (b, 4h, 4w, 3): enlarged, nothing else is done."""
        return jnp.clip(enlarge(lr, (UPSCALE * lr.shape[1], UPSCALE * lr.shape[2])), 0, 1)

    def encode(self, image: Array) -> tuple[Array, Array]:
        """Posterior moments (b, h/f, w/f, 2 z) of an image in [0, 1]; a hint has the same."""
        moments = self.vae.encode(2 * image - 1)
        return moments, moments

    def latents(self, moments: Array, noise: Array | None = None) -> Array:
        """Scaled latents: a posterior sample with the given noise, or the mode without."""
        z = posterior_mode(moments) if noise is None else posterior_sample(moments, noise)
        return z * self.config.vae.scale_factor

    def predict(self, x: Array, t: Array, context: Array) -> Array:
        """The UNet's output for x (b, h, w, z), t (b,) and one prompt's embedding (m, d)."""
        return self.unet(x, t, jnp.broadcast_to(context, (x.shape[0], *context.shape)))

    def decode(self, latents: Array) -> Array:
        """Scaled latents -> image (b, f h, f w, 3), about [0, 1], not clipped."""
        return (self.vae.decode(latents / self.config.vae.scale_factor) + 1) / 2


class OSEDiff(OneStep):
    """OSEDiff's networks: adapters `lora` of the UNet and of the VAE's encoder."""

    def __init__(
        self, config: OSEDiffConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        super().__init__(config, remat=remat, **options)
        make = Factory(**options)
        encoder = make_adapters(make, self.vae.encoder, config.rank_vae)
        self.lora = nnx.Dict(
            unet=make_adapters(make, self.unet, config.rank_unet), vae=nnx.Dict(encoder=encoder)
        )

    def merged(self) -> OSEDiff:
        """The networks with their adapters in effect."""
        return merge(self, self.lora, self.config.lora_alpha)


class PiSASR(OneStep):
    """PiSA-SR's networks: adapters `pixel_lora` and `semantic_lora` of the UNet."""

    def __init__(
        self, config: PiSASRConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        super().__init__(config, remat=remat, **options)
        make = Factory(**options)
        self.pixel_lora = nnx.Dict(unet=make_adapters(make, self.unet, config.rank_pixel))
        self.semantic_lora = nnx.Dict(unet=make_adapters(make, self.unet, config.rank_semantic))

    def merged(self) -> tuple[PiSASR, PiSASR]:
        """The networks with the pixel adapters in effect, and with both sets."""
        pixel = merge(self, self.pixel_lora, self.config.lora_alpha)
        return pixel, merge(pixel, self.semantic_lora, self.config.lora_alpha)
