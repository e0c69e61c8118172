"""What the stages of dossr-mini share: the architecture and the data.

Chosen for two CPU cores. Four pixels a side fold into channels at once: an autoencoder of one level
can start as the best linear code of its patches, and 16 channels lose little. The UNet is narrow
where the grid is fine and attends in its middle alone.
"""

from dossr_jax.config import (
    DataConfig,
    DoSSRConfig,
    RRDBConfig,
    SamplerConfig,
    UNetConfig,
    VAEConfig,
)

MODEL = DoSSRConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        model_channels=64,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        attention_levels=(False, False, False),
        head_dim=64,
        context_dim=64,
    ),
    vae=VAEConfig(
        z_channels=16,
        base_channels=64,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=16,
        patch_size=4,
        mid_attention=False,
    ),
    rrdb=RRDBConfig(num_blocks=10),
    # By measurement on held-out photos: docs/mini-notes.md.
    sampler=SamplerConfig(steps=2, order=1, grid="asinh", final_denoise=True, fidelity=0.5),
    context_length=1,
)
# Samples degraded harshly, mildly and not at all: a model of the harsh ones alone smooths photos
# that need little.
DATA = DataConfig(
    crop=128, batch=8, presets=("realesrgan", "light", "bicubic"), scale_range=(0.7, 1.0)
)
