"""All of the code at the smallest size: a trial of an installation, in seconds.

python train.py --config tiny --data DATA --output RUN --steps 20
"""

from dossr_jax.config import (
    DataConfig,
    DoSSRConfig,
    OptimizerConfig,
    RRDBConfig,
    TrainConfig,
    UNetConfig,
    VAEConfig,
)
from dossr_jax.training.stages import DoSSRStage

CONFIG = TrainConfig(
    stage=DoSSRStage(),
    model=DoSSRConfig(
        unet=UNetConfig(
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(False, False),
            head_dim=8,
            context_dim=8,
            norm_groups=8,
        ),
        vae=VAEConfig(
            base_channels=16, channel_mult=(1,), num_res_blocks=1, norm_groups=8, patch_size=4
        ),
        rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4),
        context_length=2,
    ),
    data=DataConfig(crop=32, batch=8, presets=("light",)),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=5),
    steps=100,
    save_every=50,
    validate_every=50,
    log_every=5,
)
