"""Pre-restorer of dossr-mini: L1, of coarser grids too; second of the five stages.

python train.py --config mini_rrdb --data DATA --output RUN --init VAE_MODEL
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import RRDBStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=RRDBStage(coarse_weights=(1.0, 2.0, 4.0, 4.0)),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), ema_decay=0.999),
    steps=8000,
)
