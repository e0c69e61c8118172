"""Configuration of DiffBIR. Defaults are version 1's for photographs."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import (
    LatentConfig,
    ProcessConfig,
    RRDBConfig,
    SamplerConfig,
    configuration,
)
from dossr_jax.systems.swinir.config import SwinIRConfig

CLEANER = SwinIRConfig(depths=(6,) * 8, scale=8, unshuffle=8)
SPACED = SamplerConfig(steps=50, order=1, grid="spaced", start="noise", final_denoise=True)


@configuration
class DiffBIRConfig(LatentConfig):
    """A ControlNet on Stable Diffusion that sees the image as a first network cleaned it.

    `cleaner`: SwinIR on the enlarged image, or (version 2) an RRDBNet on the image itself.
    """

    system: Literal["diffbir"] = "diffbir"
    cleaner: SwinIRConfig | RRDBConfig = CLEANER
    sampler: SamplerConfig = SPACED
    process: ProcessConfig = ProcessConfig()
    prompt: str = ""
