"""What the stages of dossr-mini share: the architecture without its refiner, and the data.

Chosen for two CPU cores: XLA runs 3x3 convolutions of 128 channels on small grids about three
times faster than narrow ones on large grids, so pixels are folded into channels at once. An
autoencoder of one level can moreover start as the best linear code of its patches.
"""

from dossr_jax.config import (
    DataConfig,
    DoSSRConfig,
    ProcessConfig,
    RRDBConfig,
    SamplerConfig,
    UNetConfig,
    VAEConfig,
)

MODEL = DoSSRConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        model_channels=128,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_levels=(False, False),  # the middle alone attends, at the same resolution
        head_dim=64,
        context_dim=64,
    ),
    vae=VAEConfig(
        z_channels=16, base_channels=128, channel_mult=(1,), num_res_blocks=2, patch_size=8
    ),
    rrdb=RRDBConfig(num_features=64, num_blocks=1, growth=32, upsampler="shuffle", patch_size=2),
    process=ProcessConfig(lr_skip=0.9),
    # By measurement on held-out photos: docs/mini.md.
    sampler=SamplerConfig(steps=5, order=1, final_denoise=True, fidelity=0.8),
    context_length=1,
)
# Half of the samples degraded harshly, half mildly: a model of the harsh ones alone smooths
# photos that need little.
DATA = DataConfig(crop=128, batch=16, presets=("realesrgan", "light"), scale_range=(0.7, 1.0))
