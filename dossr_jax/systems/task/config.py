"""Configuration of the models of one task. Defaults are the sizes of Stable Diffusion 2.1."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import LatentConfig, Task, configuration


@configuration
class TaskConfig(LatentConfig):
    """DoSSR's networks without a pre-restorer, for images that keep their size.

    `task`: what the model was trained to undo.
    """

    system: Literal["task"] = "task"
    task: Task = "denoise"
