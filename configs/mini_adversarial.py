"""Few steps of dossr-mini made sharp; last of the five stages.

python train.py --config mini_adversarial --data PAIRS --output RUN --init DOSSR_MODEL
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import AdversarialStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=AdversarialStage(
        feature_weight=0.3,
        adversarial_weight=0.05,
        discriminator_features=32,
        learn_vae_decoder=True,
    ),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(
        learning_rate=2e-4, schedule="constant", betas=(0.9, 0.99), ema_decay=0.99
    ),
    steps=700,
)
