"""The network SwinIR.

Liang et al., 2021, "SwinIR: Image Restoration Using Swin Transformer".
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Factory, LayerOptions, space_to_depth
from dossr_jax.models.windows import WindowBlock, band_regions
from dossr_jax.systems.swinir.config import SwinIRConfig

IMAGE_CHANNELS = 3
HEAD_FEATURES = 64
# Mean colour of the training images, DIV2K's; the network sees the difference from it. In float64,
# too, it is the mean as float32 rounds it: PyTorch's network holds it in that dtype.
_MEAN = np.array([0.4488, 0.4371, 0.4040], np.float32).reshape(1, 1, 1, 3)
_SLOPE = 0.2
# The activation before the enlargements alone has PyTorch's default slope.
_FIRST_SLOPE = 0.01


def _lrelu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, _SLOPE)


class Bottleneck(nnx.Module):
    """Three convolutions, the middle one 1x1, through a quarter of the channels."""

    def __init__(self, make: Factory, channels: int):
        self.conv1 = make.conv(channels, channels // 4)
        self.conv2 = make.conv(channels // 4, channels // 4, 1)
        self.conv3 = make.conv(channels // 4, channels)

    def __call__(self, x: Array) -> Array:
        return self.conv3(_lrelu(self.conv2(_lrelu(self.conv1(x)))))


def _make_residual(make: Factory, config: SwinIRConfig) -> nnx.Conv | Bottleneck:
    if config.residual == "3conv":
        return Bottleneck(make, config.embed_dim)
    return make.conv(config.embed_dim, config.embed_dim)


class ResidualGroup(nnx.Module):
    """Window blocks, every other one shifted, then a convolution; residual around all (RSTB)."""

    def __init__(self, make: Factory, depth: int, config: SwinIRConfig):
        self.blocks = nnx.List(
            WindowBlock(
                make,
                config.embed_dim,
                heads=config.heads,
                window=config.window,
                mlp_ratio=config.mlp_ratio,
                norm=make.layer_norm,
            )
            for _ in range(depth)
        )
        self.conv = _make_residual(make, config)

    def __call__(self, x: Array, regions: np.ndarray) -> Array:
        h = x
        for i, block in enumerate(self.blocks):
            h = block(h, regions if i % 2 else None)
        return x + self.conv(h)


class SwinIR(nnx.Module):
    """Image (b, h, w, 3) in [0, 1] -> (b, upscale h, upscale w, 3), about [0, 1], not clipped.

    h and w are multiples of config.multiple.
    """

    def __init__(self, config: SwinIRConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.config = config
        dim = config.embed_dim
        self.conv_first = make.conv(IMAGE_CHANNELS * config.unshuffle**2, dim)
        self.norm_in = make.layer_norm(dim)
        self.groups = nnx.List(ResidualGroup(make, depth, config) for depth in config.depths)
        self.norm_out = make.layer_norm(dim)
        self.conv_body = _make_residual(make, config)
        self.conv_head = make.conv(dim, HEAD_FEATURES)
        enlargements = config.scale.bit_length() - 1
        self.ups = nnx.List(make.up_conv(HEAD_FEATURES, HEAD_FEATURES) for _ in range(enlargements))
        self.conv_hr = make.conv(HEAD_FEATURES, HEAD_FEATURES)
        self.conv_last = make.conv(HEAD_FEATURES, IMAGE_CHANNELS)

    def __call__(self, x: Array) -> Array:
        # Before the cast: differences from the mean keep more digits in 16 bits than colours do.
        compute = jnp.promote_types(self.dtype, jnp.float32)
        mean = jnp.asarray(_MEAN, compute)
        x = (x.astype(compute) - mean).astype(self.dtype)
        first = self.conv_first(space_to_depth(x, self.config.unshuffle))
        regions = band_regions(first.shape[1], first.shape[2], self.config.window)
        h = self.norm_in(first)
        for group in self.groups:
            h = group(h, regions)
        h = first + self.conv_body(self.norm_out(h))
        h = jax.nn.leaky_relu(self.conv_head(h), _FIRST_SLOPE)
        for conv in self.ups:
            h = _lrelu(conv(h))
        return self.conv_last(_lrelu(self.conv_hr(h))) + mean.astype(self.dtype)
