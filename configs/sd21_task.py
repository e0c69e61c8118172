"""What the models of one task share at the size of Stable Diffusion 2.1: sd21_dossr at scale 1."""

import dataclasses

from dossr_jax.config import SamplerConfig, Task, TrainConfig
from dossr_jax.config.sampler import ColorFix
from dossr_jax.systems.task.config import TaskConfig

from .sd21_dossr import CONFIG as SD21_DOSSR


def sd21_task(task: Task, color_fix: ColorFix) -> TrainConfig:
    """The run of a task, with the colour fix of mini_task."""
    return dataclasses.replace(
        SD21_DOSSR,
        model=TaskConfig(task=task, sampler=SamplerConfig(color_fix=color_fix)),
        data=dataclasses.replace(SD21_DOSSR.data, presets=(task,)),
    )
