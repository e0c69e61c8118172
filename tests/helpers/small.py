"""A model as small as the stages of training allow, and batches for it."""

import dataclasses

import numpy as np

from dossr_jax.config import (
    DataConfig,
    DoSSRConfig,
    OptimizerConfig,
    RRDBConfig,
    StageConfig,
    TrainConfig,
    UNetConfig,
    VAEConfig,
)
from dossr_jax.training import stages  # noqa: F401 - they register themselves

SMALL = DoSSRConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        head_dim=8,
        context_dim=8,
        norm_groups=4,
        attention_levels=(False,),
    ),
    vae=VAEConfig(
        z_channels=4,
        base_channels=16,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=4,
        patch_size=4,
    ),
    rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4),
    context_length=1,
)
STAGES = ("rrdb", "vae", "prior", "dossr")


def make_config(stage: str, **changes) -> TrainConfig:
    """A small run of a stage; changes are fields of TrainConfig or of the stage."""
    optimizer = {"learning_rate": 3e-3, "warmup": 1, "ema_decay": 0.5}
    optimizer |= changes.pop("optimizer", {})
    common = {"data": DataConfig(crop=16, batch=4), "steps": 100, "model": SMALL}
    for field in dataclasses.fields(TrainConfig):
        if field.name in changes:
            common[field.name] = changes.pop(field.name)
    stage_config = StageConfig.known[stage](**changes)
    return TrainConfig(stage=stage_config, optimizer=OptimizerConfig(**optimizer), **common)


def make_batch(seed: int = 0, size: int = 4, crop: int = 16) -> dict[str, np.ndarray]:
    """Smooth random images with LR partners, numbered from 10 `seed` on."""
    noise = np.random.default_rng(seed).standard_normal((size, crop, crop, 3))
    for axis in (1, 2):
        noise = np.cumsum(noise, axis=axis)
    noise -= noise.min()
    hr = (255 * noise / noise.max()).astype(np.uint8)
    ids = np.arange(10 * seed, 10 * seed + size, dtype=np.uint32)
    return {"hr": hr, "lr": hr[:, ::4, ::4], "id": ids}
