"""Training samples on the device, and their random draws.

All randomness of a sample derives from its key, so that its loss depends neither on its place in
the batch nor on the number of devices or processes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dossr_jax.draws import Draw


class Inputs(NamedTuple):
    """Samples on the device: `hr` (b, h, w, 3) and `lr` in [0, 1], and one key each (b,)."""

    hr: Array
    lr: Array
    keys: Array


def fold(keys: Array, data: int | Array) -> Array:
    """Keys (b,) for one purpose out of the samples' keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def draw_normal(keys: Array, purpose: Draw | Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (b, *shape) for one purpose, from each sample's key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(fold(keys, purpose))
