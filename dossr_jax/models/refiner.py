"""Refiner: a second network of the pre-restorer's shape that also sees the restored image."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from dossr_jax.config import RRDBConfig
from dossr_jax.models.layers import Factory, LayerOptions, space_to_depth
from dossr_jax.models.rrdbnet import UPSCALE, RRDBNet, enlarge


class Refiner(nnx.Module):
    """LR, pre-restored and restored image -> the restored image, refined; (b, 4h, 4w, 3).

    The change that restoration made to the pre-restored image enters the features of an RRDBNet
    and, times `detail`, its output. It starts with the pre-restorer's weights and `conv_change`
    zero, where nothing is changed at a detail of 1. The result is not clipped.
    """

    def __init__(self, config: RRDBConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.net = RRDBNet(config, **options)
        self.block = UPSCALE * config.fold
        self.conv_change = make.zero_conv(3 * self.block**2, config.num_features, 3)

    def __call__(self, lr: Array, pre: Array, image: Array, detail: ArrayLike) -> Array:
        """lr (b, h, w, 3); pre, image (b, 4h, 4w, 3), all about [0, 1]; detail, a number."""
        change = (image - pre).astype(self.net.dtype)
        features = self.conv_change(space_to_depth(change, self.block))
        out = enlarge(self.net(lr, features), (image.shape[1], image.shape[2]))
        return out + jnp.asarray(detail, change.dtype) * change
