"""RRDBNet, the pre-restorer (ESRGAN, Real-ESRGAN, BSRGAN, LDL share it)."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import RRDBConfig
from dossr_jax.models.layers import Factory, LayerOptions, nearest_x2, space_to_depth

_SLOPE = 0.2
_RESIDUAL_SCALE = 0.2
UPSCALE = 4


def _lrelu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, _SLOPE)


class DenseBlock(nnx.Module):
    """Five convolutions, each seeing all earlier outputs; residual scaled by 0.2."""

    def __init__(self, make: Factory, features: int, growth: int):
        self.convs = nnx.List(
            make.conv(features + i * growth, growth if i < 4 else features) for i in range(5)
        )

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.convs
        h = x
        for conv in hidden:
            h = jnp.concatenate([h, _lrelu(conv(h))], axis=-1)
        return x + _RESIDUAL_SCALE * last(h)


class RRDB(nnx.Module):
    """Three dense blocks; residual scaled by 0.2."""

    def __init__(self, make: Factory, features: int, growth: int):
        self.dense = nnx.List(make.repeat(3, DenseBlock, features, growth))

    def __call__(self, x: Array) -> Array:
        h = x
        for block in self.dense:
            h = block(h)
        return x + _RESIDUAL_SCALE * h


class RRDBNet(nnx.Module):
    """Image (b, h, w, 3) in [0, 1] -> (b, scale h, scale w, 3), about [0, 1], not clipped.

    h and w are multiples of config.fold.
    """

    def __init__(self, config: RRDBConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.config = config
        features = config.num_features
        self.conv_first = make.conv(config.in_channels * config.fold**2, features)
        self.body = nnx.List(make.repeat(config.num_blocks, RRDB, features, config.growth))
        self.conv_body = make.conv(features, features)
        self.conv_up1 = make.conv(features, features)
        self.conv_up2 = make.conv(features, features)
        self.conv_hr = make.conv(features, features)
        self.conv_last = make.conv(features, config.out_channels)

    def __call__(self, x: Array) -> Array:
        h = self.conv_first(space_to_depth(x.astype(self.dtype), self.config.fold))
        trunk = h
        for block in self.body:
            trunk = block(trunk)
        h = h + self.conv_body(trunk)
        h = _lrelu(self.conv_up1(nearest_x2(h)))
        h = _lrelu(self.conv_up2(nearest_x2(h)))
        return self.conv_last(_lrelu(self.conv_hr(h)))

    def pre_restore(self, lr: Array) -> Array:
        """LR image (b, h, w, 3) in [0, 1] -> (b, 4h, 4w, 3), clipped; see DoSSR.pre_restore."""
        size = UPSCALE * lr.shape[1], UPSCALE * lr.shape[2]
        return jnp.clip(enlarge(self(lr), size), 0, 1)


def enlarge(image: Array, size: tuple[int, int]) -> Array:
    """`image` (b, h, w, c) at `size`, bicubically where it is smaller."""
    if image.shape[1:3] == size:
        return image
    return jax.image.resize(image, (image.shape[0], *size, image.shape[-1]), "cubic")
