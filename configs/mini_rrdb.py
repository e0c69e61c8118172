"""Pre-restorer of dossr-mini: L1, of coarser grids too; second of the five stages.

python train.py --config mini_rrdb --data DATA --output RUN --init VAE_MODEL
"""

from configs.mini import DATA, MODEL
from dossr_jax.config import OptimizerConfig, TrainConfig

CONFIG = TrainConfig(
    stage="rrdb",
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), ema_decay=0.999),
    coarse_weights=(1, 2, 4, 4),
    steps=8000,
)
