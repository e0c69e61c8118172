"""Few steps of dossr-mini made sharp; last of the six runs.

python train.py --config mini_adversarial --data PAIRS --output RUN --init DOSSR_MODEL
"""

import dataclasses

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import AdversarialStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=AdversarialStage(
        feature_weight=1.0,
        adversarial_weight=0.4,
        discriminator_features=16,
        gradient_steps=2,
    ),
    model=MODEL,
    data=dataclasses.replace(DATA, batch=4),
    optimizer=OptimizerConfig(
        learning_rate=2e-4, schedule="constant", betas=(0.9, 0.99), ema_decay=0.98
    ),
    steps=700,
    save_every=100,
    validate_every=250,
)
