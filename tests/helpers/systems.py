"""The smallest model of every system, of the same code as the large ones."""

import dataclasses
from typing import Any

from dossr_jax.config import LatentConfig, ModelConfig, RRDBConfig
from dossr_jax.systems import SYSTEMS, system_of
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.diffbir.config import SPACED, DiffBIRConfig
from dossr_jax.systems.resshift.config import ResShiftConfig, SwinUNetConfig, VQConfig
from dossr_jax.systems.swinir.config import SwinIRConfig
from helpers.models import TINY, randomised

SMALL_RESSHIFT = ResShiftConfig(
    unet=SwinUNetConfig(
        image_size=8,
        model_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        swin_embed_dim=8,
        head_dim=4,
        window=2,
        mlp_ratio=1,
        norm_groups=4,
    ),
    vq=VQConfig(base_channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4, codes=16),
)
_KNOWN: dict[str, ModelConfig] = {
    "dossr": TINY,
    "rrdb": RRDBConfig(num_features=8, num_blocks=1, growth=4),
    "swinir": SwinIRConfig(embed_dim=8, depths=(2,), heads=2, window=4),
    "dasr": DASRConfig(
        num_features=4, num_blocks=1, num_experts=2, predictor_features=4, num_params=3, hidden=2
    ),
    "resshift": SMALL_RESSHIFT,
    "diffbir": DiffBIRConfig(
        unet=TINY.unet,
        vae=TINY.vae,
        context_length=2,
        cleaner=SwinIRConfig(embed_dim=8, depths=(2,), heads=2, window=2, scale=8, unshuffle=8),
        sampler=dataclasses.replace(SPACED, steps=2, cfg_scale=2.0),
    ),
}


def small_config(name: str) -> ModelConfig:
    """Configuration of a system's smallest model."""
    if name in _KNOWN:
        return _KNOWN[name]
    # Those on Stable Diffusion alone differ in what surrounds its two networks.
    config = next(system for system in SYSTEMS if system.name == name).config
    assert issubclass(config, LatentConfig)
    return config(unet=TINY.unet, vae=TINY.vae, context_length=2)


def small_model(name: str, seed: int = 0) -> Any:
    """A system's smallest model, with random weights."""
    config = small_config(name)
    return randomised(lambda rngs: system_of(config).module(config, rngs=rngs), seed)
