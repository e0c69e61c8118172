"""What the models of one task share at dossr-mini's size: from its networks, to the image's pixels.

A model starts from dossr-mini, whose pre-restorer is left out, and learns through its own sampler
by L1 alone: what is wanted is the image as it was, and a mean over what could have been is the
nearest to it. The autoencoder's decoder learns, too.
"""

import dataclasses

from dossr_jax.config import OptimizerConfig, SamplerConfig, Task, TrainConfig
from dossr_jax.config.sampler import ColorFix
from dossr_jax.systems.task.config import TaskConfig
from dossr_jax.training.stages import AdversarialStage

from .mini import DATA, MODEL


def mini_task(task: Task, color_fix: ColorFix) -> TrainConfig:
    """The run of a task.

    `color_fix`: "residual" keeps what the autoencoder loses of the degraded image, which is detail
    where the damage is not; "none" drops it, which is right where it is noise.
    """
    return TrainConfig(
        stage=AdversarialStage(
            feature_weight=0.0, adversarial_weight=0.0, gradient_steps=2, learn_vae_decoder=True
        ),
        model=TaskConfig(
            task=task,
            unet=MODEL.unet,
            vae=MODEL.vae,
            sampler=SamplerConfig(
                steps=2, order=1, grid="asinh", final_denoise=True, color_fix=color_fix
            ),
            context_length=MODEL.context_length,
        ),
        data=dataclasses.replace(DATA, presets=(task,)),
        optimizer=OptimizerConfig(learning_rate=3e-4, betas=(0.9, 0.99), ema_decay=0.995),
        steps=3000,
        save_every=250,
        validate_every=500,
    )
