"""A crosscheck folder of other sizes than the golden one's."""

from pathlib import Path

import yaml

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.convert.release import Model, export_release
from dossr_jax.convert.state import Lazy

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


def write_model(folder: Path, tensors: dict[str, Lazy]) -> None:
    """weights.safetensors and config.yaml of an OTHER with these parameters, under our names."""
    exported = export_release(Model(OTHER, tensors))
    weights.write_safetensors(
        folder / "weights.safetensors", exported, lambda name: exported[name].load()
    )
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "attention_resolutions": [2, 1],
        "num_res_blocks": 1,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 8,
        "context_dim": 24,
    }
    vae = {"z_channels": 4, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
    rrdb = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 4}
    params = {
        "scale_factor": 0.3,
        "unet_config": {"params": unet},
        "first_stage_config": {"params": {"ddconfig": vae}},
        "preprocess_config": {"params": rrdb},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"params": params}))
