"""The SD autoencoder. Images lie in [-1, 1] here, latents are unscaled."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import VAEConfig
from dossr_jax.models.attention import attention
from dossr_jax.models.layers import (
    Factory,
    LayerOptions,
    ResBlock,
    depth_to_space,
    space_to_depth,
)

_EPSILON = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)


class MidAttention(nnx.Module):
    """Single-head attention over all positions; 1x1 convolutions in LDM, linear maps here."""

    def __init__(self, make: Factory, channels: int, groups: int):
        self.norm = make.group_norm(channels, groups, _EPSILON)
        self.q = make.linear(channels, channels)
        self.k = make.linear(channels, channels)
        self.v = make.linear(channels, channels)
        self.proj_out = make.linear(channels, channels)

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        tokens = self.norm(x).reshape(b, h * w, 1, c)
        out = attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return x + self.proj_out(out).reshape(x.shape)


class Mid(nnx.Module):
    """Residual block, attention (where the configuration has it), residual block."""

    def __init__(self, make: Factory, channels: int, config: VAEConfig):
        groups = config.norm_groups
        self.res1 = ResBlock(make, channels, channels, groups=groups, epsilon=_EPSILON)
        self.attn = MidAttention(make, channels, groups) if config.mid_attention else None
        self.res2 = ResBlock(make, channels, channels, groups=groups, epsilon=_EPSILON)

    def __call__(self, x: Array) -> Array:
        x = self.res1(x)
        return self.res2(x if self.attn is None else self.attn(x))


class Level(nnx.Module):
    """Residual blocks of one resolution and the convolution to the next, if there is one."""

    def __init__(
        self,
        make: Factory,
        c_in: int,
        c_out: int,
        blocks: int,
        groups: int,
        resample: nnx.Conv | None,
    ):
        self.blocks = nnx.List(
            ResBlock(make, c_in if i == 0 else c_out, c_out, groups=groups, epsilon=_EPSILON)
            for i in range(blocks)
        )
        self.resample = resample

    def __call__(self, x: Array) -> Array:
        for block in self.blocks:
            x = block(x)
        return x


class VAEEncoder(nnx.Module):
    """Image (b, h, w, 3) in [-1, 1] -> moments (b, h/f, w/f, 2 z), f = config.downscale.

    Its channels are config.encoder_channels. The quantisation convolution is part of it.
    """

    def __init__(self, config: VAEConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.patch_size = config.patch_size
        groups = config.norm_groups
        widths = [config.base_channels, *(m * config.base_channels for m in config.channel_mult)]
        levels = len(config.channel_mult)
        self.conv_in = make.conv(config.in_channels * config.patch_size**2, widths[0])
        self.down = nnx.List(
            Level(
                make,
                widths[i],
                widths[i + 1],
                config.num_res_blocks,
                groups,
                # Zero padding right and bottom only, unlike the UNet's.
                make.layer(
                    nnx.Conv,
                    widths[i + 1],
                    widths[i + 1],
                    (3, 3),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                )
                if i < levels - 1
                else None,
            )
            for i in range(levels)
        )
        self.mid = Mid(make, widths[-1], config)
        self.norm_out = make.group_norm(widths[-1], groups, _EPSILON)
        self.conv_out = make.conv(widths[-1], config.encoder_channels)
        self.quant_conv = make.conv(config.encoder_channels, config.encoder_channels, 1)

    def __call__(self, x: Array) -> Array:
        h = self.conv_in(space_to_depth(x.astype(self.dtype), self.patch_size))
        for level in self.down:
            h = level(h)
            if level.resample is not None:
                h = level.resample(h)
        h = self.conv_out(jax.nn.silu(self.norm_out(self.mid(h))))
        return self.quant_conv(h)


class VAEDecoder(nnx.Module):
    """Latents (b, h, w, z), unscaled -> image (b, f h, f w, 3), about [-1, 1], not clipped."""

    def __init__(self, config: VAEConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.patch_size = config.patch_size
        groups = config.norm_groups
        widths = [m * config.base_channels for m in reversed(config.channel_mult)]
        self.post_quant_conv = make.conv(config.z_channels, config.z_channels, 1)
        self.conv_in = make.conv(config.z_channels, widths[0])
        self.mid = Mid(make, widths[0], config)
        self.up = nnx.List(
            Level(
                make,
                widths[max(i - 1, 0)],
                widths[i],
                config.num_res_blocks + 1,
                groups,
                make.up_conv(widths[i], widths[i]) if i < len(widths) - 1 else None,
            )
            for i in range(len(widths))
        )
        self.norm_out = make.group_norm(widths[-1], groups, _EPSILON)
        self.conv_out = make.conv(widths[-1], config.in_channels * config.patch_size**2)

    def __call__(self, z: Array) -> Array:
        h = self.mid(self.conv_in(self.post_quant_conv(z.astype(self.dtype))))
        for level in self.up:
            h = level(h)
            if level.resample is not None:
                h = level.resample(h)
        return depth_to_space(self.conv_out(jax.nn.silu(self.norm_out(h))), self.patch_size)


class VAE(nnx.Module):
    """Encoder and decoder."""

    def __init__(self, config: VAEConfig, **options: Unpack[LayerOptions]):
        self.encoder = VAEEncoder(config, **options)
        self.decoder = VAEDecoder(config, **options)

    def encode(self, image: Array) -> Array:
        """Image in [-1, 1] -> moments (mean | log variance)."""
        return self.encoder(image)

    def decode(self, z: Array) -> Array:
        """Unscaled latents -> image."""
        return self.decoder(z)


def posterior(moments: Array) -> tuple[Array, Array]:
    """Mean and log variance, clipped to [-30, 20], that the moments (..., 2 z) describe."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, *_LOGVAR_RANGE)


def posterior_mode(moments: Array) -> Array:
    """Mean of the posterior that the moments (..., 2 z) describe: (..., z)."""
    return posterior(moments)[0]


def posterior_sample(moments: Array, noise: Array) -> Array:
    """Sample of the posterior with the given standard normal noise (..., z)."""
    mean, logvar = posterior(moments)
    return mean + jnp.exp(0.5 * logvar) * noise
