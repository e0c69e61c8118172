"""Diffusion prior of dossr-mini; third of the five stages.

python train.py --config mini_prior --data DATA --output RUN --init RRDB_MODEL
"""

from configs.mini import DATA, MODEL
from dossr_jax.config import OptimizerConfig, TrainConfig

CONFIG = TrainConfig(
    stage="prior",
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), ema_decay=0.999),
    prompts="both",
    steps=12_000,
)
