"""Refiner of dossr-mini, on what its own sampler makes; last of the five stages.

python train.py --config mini_refiner --data DATA --output RUN --init DOSSR_MODEL
"""

import dataclasses

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import RefinerStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=RefinerStage(coarse_weights=(1.0, 2.0, 4.0, 4.0), ssim_weight=1.0, sharpen=0.25),
    model=dataclasses.replace(MODEL, refiner=True),
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=5e-4, betas=(0.9, 0.99), ema_decay=0.999),
    steps=3000,
)
