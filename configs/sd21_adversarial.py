"""Five steps of DoSSR on SD 2.1 made sharp, on one GPU of 80 GB.

    python train.py --config sd21_adversarial --data PAIRS --output RUN --init DOSSR_MODEL

After sd21_dossr: four steps run without gradients, the fifth learns, as do the discriminator and
adapters of rank 32 in the UNet's attention. Pairs made beforehand leave the pre-restorer out.
"""

import dataclasses

from dossr_jax.training.stages import AdversarialStage

from .sd21_dossr import CONFIG as SD21_DOSSR

CONFIG = dataclasses.replace(
    SD21_DOSSR,
    stage=AdversarialStage(
        feature_weight=0.3, adversarial_weight=0.1, learn_decoder=False, lora_rank=32
    ),
    data=dataclasses.replace(SD21_DOSSR.data, batch=8),
    optimizer=dataclasses.replace(SD21_DOSSR.optimizer, learning_rate=5e-5, ema_decay=0.999),
    steps=10_000,
)
