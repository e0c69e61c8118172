"""What models on Stable Diffusion 2.1 share: its networks, and the embeddings of two prompts."""

from __future__ import annotations

from typing import Unpack

from flax import nnx
from jax import Array

from dossr_jax.config import LatentConfig
from dossr_jax.models.layers import Factory, LayerOptions
from dossr_jax.models.text_encoder import TextEncoder
from dossr_jax.models.unet import Remat, UNet
from dossr_jax.models.vae import VAE, posterior_mode, posterior_sample


class LatentModel(nnx.Module):
    """UNet, VAE, text tower, and the embeddings of the two stored prompts.

    Attributes `context` and `negative_context`, (context_length, context_dim) each, are the
    embeddings of config.prompt and config.negative_prompt.
    """

    def __init__(
        self, config: LatentConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        self.config = config
        self.unet = UNet(config.unet, remat=remat, **options)
        self.vae = VAE(config.vae, **options)
        self.text = None if config.text is None else TextEncoder(config.text, **options)
        shape = (config.context_length, config.unet.context_dim)
        make = Factory(**options)
        self.context = make.constant(shape, 0)
        self.negative_context = make.constant(shape, 0)

    def encode(self, image: Array) -> tuple[Array, Array]:
        """Posterior moments of an image (b, h, w, 3) in [0, 1], and those that give the hint.

        Returns:
          Two arrays (b, h/f, w/f, 2 z); the same one twice where the encoders are shared.
        """
        moments = self.vae.encode(2 * image - 1)
        return moments, moments

    def latents(self, moments: Array, noise: Array | None = None) -> Array:
        """Scaled latents: a posterior sample with the given noise, or the mode without.

        Args:
          moments: (b, h, w, 2 z). noise: standard normal (b, h, w, z).
        """
        z = posterior_mode(moments) if noise is None else posterior_sample(moments, noise)
        return z * self.config.vae.scale_factor

    def decode(self, latents: Array) -> Array:
        """Scaled latents (b, h, w, z) -> image (b, f h, f w, 3), about [0, 1], not clipped."""
        return (self.vae.decode(latents / self.config.vae.scale_factor) + 1) / 2
