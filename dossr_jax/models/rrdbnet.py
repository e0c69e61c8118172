"""RRDBNet, the pre-restorer (ESRGAN, Real-ESRGAN, BSRGAN, LDL share it)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import UPSCALE, RRDBConfig
from dossr_jax.models.convolution import DIMENSIONS, add_bias, value
from dossr_jax.models.layers import Factory, LayerOptions, space_to_depth

_SLOPE = 0.2
_RESIDUAL_SCALE = 0.2


def _lrelu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, _SLOPE)


class DenseBlock(nnx.Module):
    """Five convolutions, each seeing all earlier outputs; residual scaled by 0.2."""

    def __init__(self, make: Factory, features: int, growth: int):
        self.convs = nnx.List(
            make.conv(features + i * growth, growth if i < 4 else features) for i in range(5)
        )

    def __call__(self, x: Array) -> Array:
        kernels = [conv.kernel[...].astype(x.dtype) for conv in self.convs]
        biases = [value(conv.bias).astype(x.dtype) for conv in self.convs]
        grow = functools.partial(jax.lax.platform_dependent, x, kernels, biases)
        return grow(cpu=functools.partial(_grow, room=0), default=functools.partial(_grow, room=1))


def _grow(x: Array, kernels: Sequence[Array], biases: Sequence[Array], *, room: int) -> Array:
    """A dense block; features are copied to grow, each time by `room` more than are there."""
    *hidden, last = zip(kernels, biases, strict=True)
    h, width = x, x.shape[-1]
    for i, (kernel, bias) in enumerate(hidden):
        new = _lrelu(_convolve(h, kernel, bias))
        if h.shape[-1] == width:
            vacant = min(room, len(hidden) - 1 - i)
            h = jnp.concatenate([h, new, *[jnp.zeros_like(new)] * vacant], axis=-1)
        else:
            h = jax.lax.dynamic_update_slice(h, new, (0, 0, 0, width))
        width += new.shape[-1]
    kernel, bias = last
    return x + _convolve(h, _RESIDUAL_SCALE * kernel, _RESIDUAL_SCALE * bias)


def _convolve(x: Array, kernel: Array, bias: Array) -> Array:
    """3x3 convolution of the first channels, as many as the kernel has; the others are zero."""
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, x.shape[-1] - kernel.shape[2]), (0, 0)))
    window = (1, 1), ((1, 1), (1, 1))
    out = jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=DIMENSIONS)
    return add_bias(out, bias)


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
        self.conv_up1 = make.up_conv(features, features)
        self.conv_up2 = make.up_conv(features, features)
        self.conv_hr = make.conv(features, features)
        self.conv_last = make.conv(features, config.out_channels)

    def __call__(self, x: Array) -> Array:
        h = self.conv_first(space_to_depth(x.astype(self.dtype), self.config.fold))
        trunk = h
        for block in self.body:
            trunk = block(trunk)
        h = h + self.conv_body(trunk)
        h = _lrelu(self.conv_up1(h))
        h = _lrelu(self.conv_up2(h))
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
