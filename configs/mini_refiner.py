"""Refiner of dossr-mini, on what its own sampler makes; last of the five stages.

python train.py --config mini_refiner --data DATA --output RUN --init DOSSR_MODEL
"""

import dataclasses

from configs.mini import DATA, MODEL
from dossr_jax.config import OptimizerConfig, TrainConfig

CONFIG = TrainConfig(
    stage="refiner",
    model=dataclasses.replace(MODEL, refiner=True),
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=5e-4, betas=(0.9, 0.99), ema_decay=0.999),
    coarse_weights=(1, 2, 4, 4),
    ssim_weight=1.0,
    sharpen=0.25,
    steps=3000,
)
