"""Pre-restorer of dossr-mini: L1 alone; second of the four stages.

python train.py --config mini_rrdb --data DATA --output RUN --init VAE_MODEL
"""

from configs.mini import DATA, MODEL
from dossr_jax.config import OptimizerConfig, TrainConfig

CONFIG = TrainConfig(
    stage="rrdb",
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), ema_decay=0.995),
    steps=8000,
)
