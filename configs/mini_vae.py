"""Autoencoder of dossr-mini, from its linear start; first of the five stages.

python train.py --config mini_vae --data DATA --output RUN
"""

import dataclasses

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import VAEStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=VAEStage(),
    model=MODEL,
    data=dataclasses.replace(DATA, batch=8),
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup=200, betas=(0.9, 0.99), ema_decay=0.995),
    steps=4000,
)
