"""Pre-restorer of dossr-mini: ten of Real-ESRGAN's 23 blocks, trained further by L1.

    python train.py --config mini_rrdb --data DATA --output RUN --init VAE_MODEL

Kept are the blocks without any one of which Real-ESRGAN's answers change most.
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import RRDBStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=RRDBStage(start="realesrgan", blocks=(0, 1, 2, 3, 4, 12, 16, 17, 21, 22)),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=2e-4, betas=(0.9, 0.99), ema_decay=0.99),
    steps=700,
    save_every=100,
    validate_every=175,
)
