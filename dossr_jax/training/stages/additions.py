"""Losses beyond the published method, which a small model gains from (docs/mini-notes.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, NonNegativeFloat

from dossr_jax import method, metrics
from dossr_jax.config import ConfigError, TrainConfig, configuration
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training.stages.base import fold, mean_of
from dossr_jax.training.stages.latent import VAE_DECODER

CoarseWeights = tuple[NonNegativeFloat, ...]

_SSIM_SCALES = 3  # of SSIM as a loss


@configuration
class Additions:
    """What the DoSSR stage may add; nothing by default.

    `coarse_weights` add the L1 error of latents averaged over 2x2, 4x4, ... positions;
    `image_weight` and `ssim_weight` the L1 error and 1 - SSIM of the decoded prediction, from
    which the VAE's decoder may learn too (`learn_vae_decoder`). `first_step_share` of the samples
    train at t1 - 1, where every sampler's first step evaluates.
    """

    coarse_weights: CoarseWeights = ()
    image_weight: NonNegativeFloat = 0.0
    ssim_weight: NonNegativeFloat = 0.0
    learn_vae_decoder: bool = False
    first_step_share: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if self.learn_vae_decoder and not (self.image_weight or self.ssim_weight):
            raise ConfigError("learn_vae_decoder true: needs image_weight or ssim_weight above 0")

    def check(self, config: TrainConfig) -> None:
        """Refuse crops that the losses cannot be taken of."""
        pixel = config.model.vae.downscale
        check_crop(config.data.crop, self.coarse_weights, self.ssim_weight, pixel=pixel)

    def learns(self, name: str) -> bool:
        """Whether a parameter learns because of these losses."""
        return self.learn_vae_decoder and name.startswith(VAE_DECODER)

    def redraw_times(self, keys: Array, t: Array, first: int) -> Array:
        """Times (b,), `first_step_share` of them replaced by `first`."""
        if not self.first_step_share:
            return t
        keys = fold(fold(keys, Draw.TIME), 0)
        firsts = jax.vmap(lambda key: jax.random.bernoulli(key, self.first_step_share))(keys)
        return jnp.where(firsts, first, t)

    def loss(
        self, model: DoSSR, x0: Array, prediction: Array, x_lr: Array, pre: Array, hr: Array
    ) -> Array:
        """Sum (b,) of the additional losses of a data prediction; `hr`, `pre` (b, h, w, 3)."""
        total = coarse_error(x0 - prediction, self.coarse_weights)
        if self.image_weight or self.ssim_weight:
            fix = model.config.sampler.color_fix
            _, image = method.decode_latents(model, prediction, x_lr, jnp.clip(pre, 0, 1), fix)
            total += self.image_weight * mean_of(jnp.abs(hr - image))
            if self.ssim_weight:
                total += self.ssim_weight * dissimilarity(image, hr)
        return total


def coarse_error(error: Array, weights: Sequence[float]) -> Array:
    """Weighted sum (b,) of mean |error| of (b, h, w, c) on coarser grids.

    Weight k is for the error averaged over squares of 2^(k+1). L1 asks for a median, which is off
    in brightness where a distribution is skewed; and errors on a large scale weigh little against
    detail that nothing could predict.
    """
    total = jnp.zeros(error.shape[0])
    for weight in weights:
        error = metrics.halve(error)
        total += weight * mean_of(jnp.abs(error))
    return total


def dissimilarity(image: Array, hr: Array) -> Array:
    """1 - SSIM (b,), at three scales, of images in [0, 1]."""
    return 1 - metrics.multiscale_ssim(image, hr, data_range=1.0, scales=_SSIM_SCALES)


def check_crop(
    crop: int, coarse_weights: Sequence[float], ssim_weight: float = 0.0, *, pixel: int = 1
) -> None:
    """Refuse crops whose grid of `pixel` HR pixels cannot be halved once per coarse weight, and
    those too small for SSIM at three scales."""
    unit = pixel << len(coarse_weights)
    if crop % unit:
        raise ConfigError(
            f"data.crop {crop}: must be a multiple of {unit} for "
            f"{len(coarse_weights)} coarse_weights"
        )
    if ssim_weight and (crop < 44 or crop % 4):
        raise ConfigError(
            f"data.crop {crop}: must be 44 or more and a multiple of 4 for ssim_weight"
        )
