"""The networks of Stable Diffusion 2.1 and the adapters that the one-step systems add to them."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.models.latent import LatentModel
from dossr_jax.models.layers import Factory, LayerOptions
from dossr_jax.models.lora import make_adapters, merge
from dossr_jax.models.rrdbnet import UPSCALE, enlarge
from dossr_jax.models.unet import Remat
from dossr_jax.systems.one_step.config import OSEDiffConfig, PiSASRConfig


class OneStep(LatentModel):
    """Stable Diffusion 2.1 evaluated once; of the two stored prompts the first alone is read."""

    def pre_restore(self, lr: Array) -> Array:
        """LR image (b, h, w, 3) in [0, 1] -> (b, 4h, 4w, 3): enlarged, nothing else is done."""
        return jnp.clip(enlarge(lr, (UPSCALE * lr.shape[1], UPSCALE * lr.shape[2])), 0, 1)

    def predict(self, x: Array, t: Array, context: Array) -> Array:
        """The UNet's output for x (b, h, w, z), t (b,) and one prompt's embedding (m, d)."""
        return self.unet(x, t, context[None])


class OSEDiff(OneStep):
    """OSEDiff's networks: adapters `lora` of the UNet and of the VAE's encoder."""

    config: OSEDiffConfig

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

    config: PiSASRConfig

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
