"""Whole models with a ControlNet: DoSSR's, and what DiffBIR's has in common with it."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dossr_jax.config import DoSSRConfig, LatentConfig
from dossr_jax.models.controlnet import ControlNet
from dossr_jax.models.latent import LatentModel
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.rrdbnet import UPSCALE, RRDBNet, enlarge
from dossr_jax.models.unet import Remat
from dossr_jax.models.vae import VAEEncoder


class ControlledModel(LatentModel):
    """Stable Diffusion 2.1 with a ControlNet."""

    def __init__(
        self, config: LatentConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        super().__init__(config, remat=remat, **options)
        self.control = ControlNet(config.unet, remat=remat, **options)

    def predict_noise(
        self,
        x: Array,
        t: Array,
        context: Array,
        hint: Array | None,
        *,
        strength: ArrayLike = 1.0,
    ) -> Array:
        """Output of the UNet, e(x_t, t, context, hint): the noise, or v (ProcessConfig.prediction).

        Args:
          x, hint: (b, h, w, z); hint None leaves the ControlNet out.
          t: (b,). context: (b, m, context_dim).
          strength: factor on the ControlNet's residuals, one number or one per residual.
        """
        if hint is None:
            return self.unet(x, t, context)
        residuals = self.control(x, hint, t, context)
        factors = jnp.broadcast_to(jnp.asarray(strength, x.dtype), (len(residuals),))
        control = [r * f.astype(r.dtype) for r, f in zip(residuals, factors, strict=True)]
        return self.unet(x, t, context, control)


class DoSSR(ControlledModel):
    """DoSSR's networks: a pre-restorer too, and where it differs the hint's own encoder."""

    config: DoSSRConfig

    def __init__(
        self, config: DoSSRConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        super().__init__(config, remat=remat, **options)
        # The hint encoder is a frozen copy of the VAE's; a checkpoint may have let them differ.
        self.hint_encoder = None if config.shared_encoder else VAEEncoder(config.vae, **options)
        self.rrdb = RRDBNet(config.rrdb, **options)

    def pre_restore(
        self, lr: Array, size: tuple[int, int] | None = None, *, clip: bool = True
    ) -> Array:
        """LR image (b, h, w, 3) in [0, 1] -> pre-restored image (b, *size, 3), by default 4h x 4w.

        Where the pre-restorer makes fewer pixels, bicubic enlargement follows. Restoration clips to
        [0, 1], training does not.
        """
        height, width = lr.shape[1:3]
        image = enlarge(self.rrdb(lr), size or (UPSCALE * height, UPSCALE * width))
        return jnp.clip(image, 0, 1) if clip else image

    def encode(self, image: Array) -> tuple[Array, Array]:
        """As LatentModel; the hint by its own encoder where it has one."""
        moments, hint = super().encode(image)
        return moments, hint if self.hint_encoder is None else self.hint_encoder(2 * image - 1)
