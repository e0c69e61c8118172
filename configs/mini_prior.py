"""Diffusion prior of dossr-mini; fourth of the six runs.

python train.py --config mini_prior --data DATA --output RUN --init RRDB_MODEL
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import PriorStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=PriorStage(prompts="both"),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), ema_decay=0.995),
    steps=800,
)
