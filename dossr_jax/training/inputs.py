"""What a training step works on: samples on the device, and random draws of their own.

Everything random about a sample derives from its own key, so that its loss depends neither on
its place in the batch nor on the number of devices or processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.config import TrainConfig
from dossr_jax.data import degradation
from dossr_jax.errors import UserError
from dossr_jax.models.rrdbnet import UPSCALE

Batch = Mapping[str, Any]

_DEGRADE = 0  # purpose of a random draw; those of the losses and of sampling follow


class Inputs(NamedTuple):
    """Samples on the device: `hr` (b, h, w, 3) and `lr` in [0, 1], and one key each (b,)."""

    hr: Array
    lr: Array
    keys: Array


def fold(keys: Array, data: int) -> Array:
    """Keys (b,) for one purpose out of the samples' keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def normal(keys: Array, purpose: int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (b, *shape) for one purpose, every sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(fold(keys, purpose))


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
    if config.stage == "refiner" and scale != UPSCALE:
        raise UserError(
            f"data.presets {', '.join(config.data.presets)} degrade by {scale}; a refiner is for "
            f"restoration, which enlarges by {UPSCALE}"
        )
    return scale


def make_inputs(config: TrainConfig, mesh: Mesh, seed_key: Array) -> Callable[[Batch], Inputs]:
    """Function from a batch (dossr_jax.data.pipeline) on the mesh to the stage's inputs.

    Images without LR partners are degraded here, on the device.
    """
    scale = lr_scale(config)
    table = degradation.make_table(config.data.presets)
    degrade = parallel.on_each_device(
        functools.partial(degradation.degrade, table=table, scale=scale), mesh
    )

    def inputs(batch: Batch) -> Inputs:
        keys = jax.vmap(lambda number: jax.random.fold_in(seed_key, number))(batch["id"])
        hr = batch["hr"].astype(jnp.float32) / 255
        if "lr" in batch:
            lr = batch["lr"].astype(jnp.float32) / 255
        elif config.stage in ("rrdb", "dossr", "refiner"):
            lr = degrade(fold(keys, _DEGRADE), hr)
        else:
            lr = hr  # the stage does not look at it
        return Inputs(hr, lr, keys)

    return inputs
