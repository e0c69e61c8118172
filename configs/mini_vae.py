"""Autoencoder of dossr-mini, from its linear start; first of the six runs.

python train.py --config mini_vae --data DATA --output RUN
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import VAEStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=VAEStage(),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup=50, betas=(0.9, 0.99), ema_decay=0.98),
    steps=300,
)
