"""What the stages of dossr-mini share: the architecture and the data.

Chosen for two CPU cores: XLA runs 3x3 convolutions of 128 channels on small grids about three
times faster than narrow ones on large grids, so pixels are folded into channels at once. An
autoencoder of one level can moreover start as the best linear code of its patches.
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
        in_channels=48,
        out_channels=48,
        model_channels=128,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_levels=(False, False),  # the middle alone attends, at half the resolution
        head_dim=64,
        context_dim=64,
    ),
    vae=VAEConfig(
        z_channels=48,
        base_channels=192,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=48,
        patch_size=8,
    ),
    rrdb=RRDBConfig(num_blocks=10),
    sampler=SamplerConfig(steps=5, order=1, final_denoise=True, color_fix="residual"),
    context_length=1,
)
# Half of the samples degraded harshly, half mildly: a model of the harsh ones alone smooths
# photos that need little.
DATA = DataConfig(crop=128, batch=8, presets=("realesrgan", "light"), scale_range=(0.7, 1.0))
