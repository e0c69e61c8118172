"""Refiner: a small network of pixels that corrects a restored image with the pre-restored one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import RefinerConfig
from dossr_jax.models.layers import Dtype, Factory, depth_to_space, space_to_depth


class _Block(nnx.Module):
    """Two convolutions and a shortcut, without norms (EDSR, arXiv 1707.02921)."""

    def __init__(self, make: Factory, features: int):
        self.conv1 = make.conv(features, features)
        self.conv2 = make.conv(features, features)

    def __call__(self, x: Array) -> Array:
        return x + self.conv2(jax.nn.silu(self.conv1(x)))


class Refiner(nnx.Module):
    """Restored and pre-restored image (b, h, w, 3) in [0, 1] -> the first one, corrected.

    An autoencoder that folds many pixels into few channels loses detail that its input still has,
    and what a latent says reaches pixels in blocks. The correction, zero in a fresh network, is
    made where both can be seen; the result is not clipped. h and w are multiples of
    config.patch_size.
    """

    def __init__(
        self,
        config: RefinerConfig,
        *,
        dtype: Dtype = jnp.float32,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = Factory(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dtype = dtype
        self.config = config
        pixels = config.patch_size**2
        self.conv_in = make.conv(6 * pixels, config.num_features)
        self.blocks = nnx.List(_Block(make, config.num_features) for _ in range(config.num_blocks))
        self.conv_out = make.zero_conv(config.num_features, 3 * pixels, 3)

    def __call__(self, image: Array, pre: Array) -> Array:
        both = jnp.concatenate([image, pre], axis=-1).astype(self.dtype)
        h = self.conv_in(space_to_depth(both, self.config.patch_size))
        for block in self.blocks:
            h = block(h)
        correction = self.conv_out(jax.nn.silu(h))
        return image + depth_to_space(correction, self.config.patch_size)
