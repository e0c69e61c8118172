"""Pre-restorer of dossr-mini: part of Real-ESRGAN made faithful; second of the six runs.

    python train.py --config mini_rrdb_adversarial --data DATA --output RUN --init VAE_MODEL

It learns as Real-ESRGAN did, but half of its pictures have little wrong, and the distance to HR,
in pixels and features, weighs more against the discriminator. Kept are the ten of 23 blocks without
any one of which Real-ESRGAN's answers change most.
"""

import dataclasses

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import AdversarialRRDBStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=AdversarialRRDBStage(
        start="realesrgan",
        blocks=(0, 1, 2, 3, 4, 12, 16, 17, 21, 22),
        feature_weight=1.0,
        adversarial_weight=0.2,
        discriminator_features=16,
    ),
    model=MODEL,
    data=dataclasses.replace(DATA, batch=4, presets=("realesrgan", "light")),
    optimizer=OptimizerConfig(
        learning_rate=1e-4, schedule="constant", betas=(0.9, 0.99), ema_decay=0.98
    ),
    steps=420,
    save_every=100,
    validate_every=200,
)
