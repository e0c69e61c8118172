"""From a batch of host arrays to what a training step works on; degradation runs here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.config import TrainConfig
from dossr_jax.data import degradation
from dossr_jax.draws import Draw
from dossr_jax.errors import UserError
from dossr_jax.training.samples import Inputs, fold
from dossr_jax.training.stages.base import Stage

Batch = Mapping[str, Any]


def lr_scale(config: TrainConfig) -> int:
    """Side of an HR crop in sides of its LR partner, which the degradation decides.

    Raises:
      UserError: unknown presets, or a pre-restorer that makes more pixels than the HR crop has.
    """
    unknown = set(config.data.presets) - set(degradation.PRESETS)
    if unknown:
        known = ", ".join(degradation.PRESETS)
        raise UserError(f"data.presets: no {', '.join(sorted(unknown))}; there are {known}")
    scale = degradation.PRESETS[config.data.presets[0]].scale
    if config.model.rrdb.scale > scale:
        raise UserError(
            f"data.presets {', '.join(config.data.presets)} degrade by {scale}, the pre-restorer "
            f"enlarges by {config.model.rrdb.scale}; give it model.rrdb.scale {scale}"
        )
    return scale


def make_inputs(config: TrainConfig, mesh: Mesh, seed_key: Array) -> Callable[[Batch], Inputs]:
    """Function from a batch (dossr_jax.data.pipeline) on the mesh to the stage's inputs.

    Images without LR partners are degraded here, on the device.
    """
    needs_lr = Stage.of(config).needs_lr
    lr_scale(config)  # refuses presets that do not fit the model
    presets = degradation.choose_presets(config.data.presets)
    degrade = parallel.on_each_device(functools.partial(degradation.degrade, presets=presets), mesh)

    def inputs(batch: Batch) -> Inputs:
        keys = jax.vmap(lambda number: jax.random.fold_in(seed_key, number))(batch["id"])
        hr = jnp.asarray(batch["hr"], jnp.float32) / 255
        if "lr" in batch:
            lr = jnp.asarray(batch["lr"], jnp.float32) / 255
        elif needs_lr:
            lr = degrade(fold(keys, Draw.DEGRADE), hr)
        else:
            lr = hr  # the stage does not look at it
        return Inputs(hr, lr, keys)

    return inputs
