"""The ControlNet: a copy of the UNet's encoder that also sees the hint."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import UNetConfig
from dossr_jax.models.layers import Factory, LayerOptions
from dossr_jax.models.unet import Encoder, Remat, encoder_channels


class ControlNet(nnx.Module):
    """Residuals for the UNet's skips and middle from (x_t, hint); zero before training."""

    def __init__(
        self, config: UNetConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        make = Factory(**options)
        self.dtype = make.dtype
        self.encoder = Encoder(make, 2 * config.in_channels, config, remat=remat)
        channels = encoder_channels(config)
        self.zero_convs = nnx.List(make.zero_conv(c, c) for c in channels)
        self.zero_mid = make.zero_conv(channels[-1], channels[-1])

    def __call__(self, x: Array, hint: Array, t: Array, context: Array | None) -> list[Array]:
        """Residuals in the order of the encoder outputs, the middle's last.

        Args:
          x, hint: noisy latents and scaled latents of the pre-restored image (b, h, w, c).
          t: timesteps (b,).
          context: prompt embeddings (b, m, context_dim).
        """
        inputs = jnp.concatenate([x, hint], axis=-1).astype(self.dtype)
        skips, mid, _ = self.encoder(inputs, t, context)
        residuals = [conv(skip) for conv, skip in zip(self.zero_convs, skips, strict=True)]
        return [*residuals, self.zero_mid(mid)]
