"""Crosscheck folders of other sizes than the golden one's: weights and configuration."""

from pathlib import Path

import yaml

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.systems.dossr.release import Model, export_release
from dossr_jax.weights import Lazy

OTHER = DoSSRConfig(
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4),
        num_res_blocks=1,
        attention_levels=(True, True, False),
        head_dim=8,
        context_dim=24,
    ),
    vae=VAEConfig(base_channels=32, channel_mult=(1, 2), num_res_blocks=1, scale_factor=0.3),
    rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4),
    shared_encoder=False,
    context_length=5,
)


def write_model(folder: Path, config: DoSSRConfig, tensors: dict[str, Lazy]) -> None:
    """weights.safetensors and config.yaml of a model with these parameters, under our names."""
    exported = export_release(Model(config, tensors))
    weights.write_safetensors(folder / "weights.safetensors", exported)
    attends = enumerate(config.unet.attention_levels)
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": config.unet.model_channels,
        "attention_resolutions": [2**i for i, on in attends if on],
        "num_res_blocks": config.unet.num_res_blocks,
        "channel_mult": list(config.unet.channel_mult),
        "num_head_channels": config.unet.head_dim,
        "context_dim": config.unet.context_dim,
    }
    vae = {
        "z_channels": 4,
        "ch": config.vae.base_channels,
        "ch_mult": list(config.vae.channel_mult),
        "num_res_blocks": config.vae.num_res_blocks,
    }
    rrdb = {
        "num_feat": config.rrdb.num_features,
        "num_block": config.rrdb.num_blocks,
        "num_grow_ch": config.rrdb.growth,
        "scale": 4,
    }
    params = {
        "scale_factor": config.vae.scale_factor,
        "unet_config": {"params": unet},
        "first_stage_config": {"params": {"ddconfig": vae}},
        "preprocess_config": {"params": rrdb},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"params": params}))
