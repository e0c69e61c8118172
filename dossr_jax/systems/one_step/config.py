"""Configurations of the one-step systems. Defaults are the published sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from dossr_jax.config import LatentConfig, SamplerConfig, configuration
from dossr_jax.config.model import Count

# One evaluation; what else a sampler may be is not read.
_SAMPLER = SamplerConfig(steps=1, order=1, color_fix="adain")


@configuration
class OneStepConfig(LatentConfig):
    """What they share: the networks of Stable Diffusion 2.1 with low-rank adapters.

    `lora_alpha` over an adapter's rank scales it. No checkpoint stores it: it is the default of
    the library that trained them.
    """

    sampler: SamplerConfig = _SAMPLER
    prompt: str = ""
    lora_alpha: PositiveFloat = 8.0


@configuration
class OSEDiffConfig(OneStepConfig):
    """OSEDiff: adapters of the UNet and of the VAE's encoder."""

    system: Literal["osediff"] = "osediff"
    rank_unet: Count = 4
    rank_vae: Count = 4


@configuration
class PiSASRConfig(OneStepConfig):
    """PiSA-SR: two sets of adapters of the UNet, which remove degradation and add detail."""

    system: Literal["pisasr"] = "pisasr"
    rank_pixel: Count = 4
    rank_semantic: Count = 4
