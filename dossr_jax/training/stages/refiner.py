"""Refiner of the restored image, a second network of the pre-restorer's shape; not published."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from pydantic import NonNegativeFloat

from dossr_jax import weights
from dossr_jax.config import ConfigError, DoSSRConfig, TrainConfig, configuration
from dossr_jax.data import degradation
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.refiner import Refiner
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.training.stages.additions import (
    CoarseWeights,
    check_crop,
    coarse_error,
    dissimilarity,
)
from dossr_jax.training.stages.base import Inputs, Metrics, Read, Stage, mean_of, psnr
from dossr_jax.training.stages.latent import sample_images

# The refiner learns at the mean of restored and pre-restored image, which is closer to the truth
# than either. How much detail a picture gets is up to its sampler.
_DETAIL = 0.5
_SHARPEN_DEVIATION = 2.0  # of the unsharp mask, in pixels


@configuration
class RefinerStage(Stage):
    """`coarse_weights` add the error of coarser grids, `ssim_weight` 1 - SSIM; the target is the
    HR image with `sharpen` times an unsharp mask added."""

    name: Literal["refiner"] = "refiner"
    coarse_weights: CoarseWeights = ()
    ssim_weight: NonNegativeFloat = 0.0
    sharpen: NonNegativeFloat = 0.0

    def check(self, config: TrainConfig) -> None:
        check_crop(config.data.crop, self.coarse_weights, self.ssim_weight)
        if not config.model.refiner:
            raise ConfigError("model.refiner false: this stage trains the refiner; set it to true")
        preset = config.data.presets[0]
        scale = degradation.PRESETS[preset].scale if preset in degradation.PRESETS else UPSCALE
        if scale != UPSCALE:
            raise ConfigError(
                f"data.presets {preset}: degrades by {scale}; a refiner needs a factor of {UPSCALE}"
            )

    def learns(self, name: str) -> bool:
        return name.startswith("refiner.")

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Mean |HR - refined| of what the model's own sampler makes, colour fix included.

        All frequency bands count here, though restoration takes only the fine ones: a network
        that is not asked for the coarse ones spends them on the fine (docs/mini-notes.md).
        """
        hr = sharpen_images(inputs.hr, self.sharpen) if self.sharpen else inputs.hr
        unrefined = jax.lax.stop_gradient(sample_images(model, inputs, refine=False))
        assert model.refiner is not None
        pre, fixed = unrefined.pre_restored, unrefined.result
        out = model.refiner(inputs.lr, pre, fixed, _DETAIL).astype(jnp.float32)
        loss = mean_of(jnp.abs(hr - out)) + coarse_error(hr - out, self.coarse_weights)
        if self.ssim_weight:
            loss += self.ssim_weight * dissimilarity(out, hr)
        return loss, {"psnr": psnr(out, inputs.hr), "unrefined_psnr": psnr(fixed, inputs.hr)}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        """What the model's own sampler makes, after colour fix and refiner."""
        return inputs.lr, sample_images(model, inputs, refine=True).result

    def starting_config(self, config: DoSSRConfig) -> DoSSRConfig:
        return dataclasses.replace(config, refiner=False)

    def adapt(
        self, config: DoSSRConfig, found: DoSSRConfig, read: Read
    ) -> tuple[DoSSRConfig, Read]:
        """With the run's sampler, and a refiner, which starts as a copy of the pre-restorer."""
        if not found.refiner:
            read = add_refiner(read, found)
        return dataclasses.replace(found, refiner=True, sampler=config.sampler), read


def sharpen_images(image: Array, amount: float) -> Array:
    """Images (b, h, w, c) plus `amount` times what a Gaussian blur of deviation 2 px takes off."""

    def blur(side: int) -> np.ndarray:
        """Matrix (side, side) that blurs a line of pixels, normalised at its ends."""
        distance = np.subtract.outer(np.arange(side), np.arange(side))
        weights = np.exp(-0.5 * (distance / _SHARPEN_DEVIATION) ** 2)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    rows, cols = map(blur, image.shape[1:3])
    blurred = jnp.einsum("ih,bhwc,jw->bijc", rows, image, cols)
    return image + amount * (image - blurred)


def add_refiner(read: Read, config: DoSSRConfig) -> Read:
    """The model that `read` gives, with a fresh refiner: its network copies the pre-restorer."""
    target, fresh = "refiner.net.", Refiner(config.rrdb, rngs=nnx.Rngs(0))
    started = {f"refiner.{name}": param[...] for name, param in weights.names_and_params(fresh)}

    def value(name: str) -> np.ndarray:
        if name.startswith(target):
            return read("rrdb." + name.removeprefix(target))
        return np.asarray(started[name]) if name in started else read(name)

    return value
