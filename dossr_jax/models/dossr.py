"""Whole models with a ControlNet: DoSSR's, and what DiffBIR's has in common with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dossr_jax.config import DoSSRConfig, LatentConfig
from dossr_jax.models.controlnet import ControlNet
from dossr_jax.models.latent import LatentModel
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.rrdbnet import UPSCALE, RRDBNet, enlarge
from dossr_jax.models.unet import Remat, UNet, for_steps
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
          t: (b,). context: (b, m, context_dim). Both may have one row for all images.
          strength: factor on the ControlNet's residuals, one number or one per residual.
        """
        if hint is None:
            return self.unet(x, t, context)
        return _predict(self.unet, self.control, x, t, context, hint, strength)

    def for_steps(self, times: Array, context: Array) -> Callable[..., Array]:
        """:meth:`predict_noise` in the steps of a solver, as a function of what changes there.

        Args:
          times: of all steps, (n,). context: prompt embeddings (1, m, context_dim).

        Returns:
          (x, index of a time (1,), hint, strength) -> the UNet's output.
        """
        unet = for_steps(self.unet, times, context)
        control = for_steps(self.control, times, context)
        return lambda x, i, hint, strength: _predict(unet, control, x, i, None, hint, strength)


def _predict(
    unet: UNet,
    control: ControlNet,
    x: Array,
    t: Array,
    context: Array | None,
    hint: Array,
    strength: ArrayLike,
) -> Array:
    residuals = control(x, hint, t, context)
    factors = jnp.broadcast_to(jnp.asarray(strength, x.dtype), (len(residuals),))
    scaled = [r * f.astype(r.dtype) for r, f in zip(residuals, factors, strict=True)]
    return unet(x, t, context, scaled)


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
