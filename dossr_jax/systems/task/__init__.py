"""Restoration at scale 1: DoSSR's process from the domain of degraded images to that of clean ones.

The degraded image takes the place of the pre-restored one. Process, networks, solver and settings
are DoSSR's; nothing is enlarged. One model is trained for one task.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.config import DoSSRConfig, LatentConfig, Task
from dossr_jax.models.dossr import ControlledModel
from dossr_jax.systems import dossr
from dossr_jax.systems.base import Geometry, Model, Run, System
from dossr_jax.systems.task.config import TaskConfig


class TaskModel(ControlledModel):
    """DoSSR's networks without a pre-restorer."""

    config: TaskConfig

    def pre_restore(
        self, lr: Array, size: tuple[int, int] | None = None, *, clip: bool = True
    ) -> Array:
        """The degraded image (b, h, w, 3) itself, as :meth:`dossr_jax.models.dossr.DoSSR` does it.

        `size`: its own, if any. Restoration clips to [0, 1], training does not.
        """
        assert size is None or size == lr.shape[1:3]
        return jnp.clip(lr, 0, 1) if clip else lr


def geometry(config: TaskConfig) -> Geometry:
    """Shapes of a model: a pixel of the result per pixel of the input."""
    return Geometry(config.vae.downscale, config.unet.downscale, factor=1)


def restore(model: TaskModel, lr: Array, run: Run) -> method.Restoration:
    """As DoSSR, from the degraded image in place of the pre-restored one."""
    pre = model.pre_restore(lr)
    return method.restore_images(model, pre, run.size, factor=1, **run.sampling())


def for_task(model: Model, task: Task) -> Model:
    """What training for `task` starts from: a model of DoSSR, or of any task.

    DoSSR's pre-restorer is left out. A DoSSR whose hint has an encoder of its own, and models of
    other systems, come back as they are.
    """
    config = model.config
    if isinstance(config, TaskConfig):
        return model.replace(task=task)
    if not (isinstance(config, DoSSRConfig) and config.shared_encoder):
        return model
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(LatentConfig)}
    del shared["system"]
    return Model(TaskConfig(task=task, **shared), model.replace(drop="rrdb.").tensors, model.notes)


SYSTEM = System(
    name="task",
    title="DoSSR at scale 1",
    config=TaskConfig,
    module=TaskModel,
    geometry=geometry,
    restore=restore,
    table=dossr.solver_table,
    settings=dossr.SETTINGS - {"diffuse"},  # there is nothing else to it
    guided=dossr.SYSTEM.guided,
    keeps_areas=lambda config: config.task != "inpaint",  # what a hole looks like is to go
)
