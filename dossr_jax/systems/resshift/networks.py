"""The networks of ResShift: a UNet with window attention and a VQ autoencoder.

Yue et al., 2023, "ResShift: Efficient Diffusion Model for Image Super-resolution by Residual
Shifting".
"""

from __future__ import annotations

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Factory, LayerOptions
from dossr_jax.models.unet import Remat, TimeEmbedding, run_stage
from dossr_jax.models.vae import VAEDecoder, VAEEncoder
from dossr_jax.models.windows import WindowBlock, half_regions
from dossr_jax.systems.resshift.config import SwinUNetConfig, VQConfig

_EPSILON = 1e-5
# Positions whose distances to all codes are in memory at once: 64 MB for 8192 codes.
_POSITIONS = 2048


class ScaleShiftBlock(nnx.Module):
    """norm, SiLU, conv, norm scaled and shifted by the time, SiLU, conv, + shortcut."""

    def __init__(self, make: Factory, c_in: int, c_out: int, config: SwinUNetConfig):
        self.norm1 = make.group_norm(c_in, config.norm_groups, _EPSILON)
        self.conv1 = make.conv(c_in, c_out)
        self.time = make.linear(config.time_dim, 2 * c_out)
        self.norm2 = make.group_norm(c_out, config.norm_groups, _EPSILON)
        self.conv2 = make.conv(c_out, c_out)
        self.shortcut = None if c_in == c_out else make.conv(c_in, c_out, 1)

    def __call__(self, x: Array, temb: Array) -> Array:
        """x (b, h, w, c_in), temb (b, time_dim) -> (b, h, w, c_out)."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        time = self.time(jax.nn.silu(temb))[:, None, None, :]
        scale, shift = jnp.split(time, 2, axis=-1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(jax.nn.silu(h))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SwinLayer(nnx.Module):
    """Window blocks at a width of their own. Nothing is added around them."""

    def __init__(self, make: Factory, channels: int, config: SwinUNetConfig, *, shifts: bool):
        self.window, self.shifts = config.window, shifts
        dim = config.swin_embed_dim
        self.proj_in = make.linear(channels, dim)
        self.blocks = nnx.List(
            WindowBlock(
                make,
                dim,
                heads=dim // config.head_dim,
                window=config.window,
                mlp_ratio=config.mlp_ratio,
                # Statistics over the whole map, not per token as elsewhere in Swin.
                norm=functools.partial(
                    make.group_norm, groups=config.norm_groups, epsilon=_EPSILON
                ),
            )
            for _ in range(config.swin_depth)
        )
        self.proj_out = make.linear(dim, channels)

    def __call__(self, x: Array) -> Array:
        h = self.proj_in(x)
        regions = half_regions(x.shape[1], x.shape[2], self.window) if self.shifts else None
        for i, block in enumerate(self.blocks):
            h = block(h, regions if i % 2 else None)
        return self.proj_out(h)


class Stage(nnx.Module):
    """A residual block, followed by window attention at the first of its level."""

    def __init__(
        self,
        make: Factory,
        c_in: int,
        c_out: int,
        config: SwinUNetConfig,
        level: int,
        *,
        swin: bool,
    ):
        self.res = ScaleShiftBlock(make, c_in, c_out, config)
        shifts = config.shifts(level)
        self.swin = SwinLayer(make, c_out, config, shifts=shifts) if swin else None

    def __call__(self, x: Array, temb: Array) -> Array:
        x = self.res(x, temb)
        return x if self.swin is None else self.swin(x)


class Level(nnx.Module):
    """The stages of one resolution, and the convolution to the next if there is one.

    `inputs` are the channels that each stage takes.
    """

    def __init__(
        self,
        make: Factory,
        inputs: list[int],
        config: SwinUNetConfig,
        level: int,
        resample: nnx.Conv | None,
    ):
        c_out = config.widths[level]
        self.stages = nnx.List(
            Stage(make, c_in, c_out, config, level, swin=i == 0) for i, c_in in enumerate(inputs)
        )
        self.resample = resample


class Mid(nnx.Module):
    """Residual block, window attention, residual block at the coarsest resolution."""

    def __init__(self, make: Factory, config: SwinUNetConfig):
        channels, level = config.widths[-1], len(config.widths) - 1
        self.stage = Stage(make, channels, channels, config, level, swin=True)
        self.out = Stage(make, channels, channels, config, level, swin=False)

    def __call__(self, x: Array, temb: Array) -> Array:
        return self.out(self.stage(x, temb), temb)


def encoder_inputs(config: SwinUNetConfig) -> list[list[int]]:
    """Channels that the encoder's stages take, level by level."""
    before = (config.model_channels, *config.widths)
    return [
        [before[level]] + [width] * (config.num_res_blocks[level] - 1)
        for level, width in enumerate(config.widths)
    ]


def decoder_inputs(config: SwinUNetConfig) -> list[list[int]]:
    """Channels that the decoder's stages take, coarsest level first: the map's and a skip's."""
    skips = [config.model_channels]
    for level, width in enumerate(config.widths):
        skips += [width] * config.num_res_blocks[level]
        if level < len(config.widths) - 1:
            skips.append(width)  # of the convolution to the next level
    c = config.widths[-1]
    inputs = []
    for level in reversed(range(len(config.widths))):
        width = config.widths[level]
        stages = config.num_res_blocks[level] + 1
        inputs.append([(width if i else c) + skips.pop() for i in range(stages)])
        c = width
    return inputs


class SwinUNet(nnx.Module):
    """Prediction of the clean latent from a noisy one and the low-resolution image."""

    def __init__(
        self, config: SwinUNetConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        make = Factory(**options)
        self.dtype = make.dtype
        self.remat: Remat = remat
        self.time = TimeEmbedding(make, config.model_channels, config.time_dim)
        self.conv_in = make.conv(config.in_channels + config.lq_channels, config.model_channels)
        last = len(config.widths) - 1
        self.down = nnx.List(
            Level(
                make,
                inputs,
                config,
                level,
                None
                if level == last
                else make.conv(config.widths[level], config.widths[level], stride=2),
            )
            for level, inputs in enumerate(encoder_inputs(config))
        )
        self.mid = Mid(make, config)
        self.up = nnx.List(
            Level(
                make,
                inputs,
                config,
                level,
                None if level == 0 else make.up_conv(config.widths[level], config.widths[level]),
            )
            for level, inputs in zip(reversed(range(last + 1)), decoder_inputs(config), strict=True)
        )
        self.norm_out = make.group_norm(config.widths[0], config.norm_groups, _EPSILON)
        self.conv_out = make.conv(config.widths[0], config.in_channels)

    def __call__(self, x: Array, t: Array, lq: Array) -> Array:
        """Predict the clean latent.

        Args:
          x: noisy latents (b, h, w, in_channels), divided by their deviation; h and w multiples
            of config.multiple.
          t: steps of the chain (b,), from 0 on.
          lq: low-resolution images (b, h, w, lq_channels) in [-1, 1].

        Returns:
          (b, h, w, in_channels) in the compute dtype.
        """
        temb = self.time(t)
        h = self.conv_in(jnp.concatenate([x.astype(self.dtype), lq.astype(self.dtype)], axis=-1))
        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = run_stage(stage, h, temb, remat=self.remat)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = run_stage(self.mid, h, temb, remat=self.remat)
        for level in self.up:
            for stage in level.stages:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = run_stage(stage, h, temb, remat=self.remat)
            if level.resample is not None:
                h = level.resample(h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)))


class VQ(nnx.Module):
    """Autoencoder whose decoder replaces every position of the latent by the nearest code."""

    def __init__(self, config: VQConfig, **options: Unpack[LayerOptions]):
        self.encoder = VAEEncoder(config, **options)
        self.decoder = VAEDecoder(config, **options)
        make = Factory(**options)
        # A wrong code is a visible patch: none are stored or compared in 16 bits.
        exact = Factory(
            param_dtype=jnp.promote_types(make.param_dtype, jnp.float32), rngs=make.rngs
        )
        self.codebook = exact.normal((config.codes, config.z_channels), 1 / config.codes)

    def encode(self, image: Array) -> Array:
        """Image (b, h, w, 3) in [-1, 1] -> latent (b, h/f, w/f, z), not quantised."""
        return self.encoder(image)

    def nearest_code(self, z: Array) -> Array:
        """Latents (b, h, w, z) -> indices of the nearest codes (b, h, w) int32, first of equals."""
        codes = self.codebook[...]
        lengths = jnp.sum(codes**2, axis=-1)

        def nearest(position: Array) -> Array:
            products = jnp.matmul(codes, position, precision=jax.lax.Precision.HIGHEST)
            distances = jnp.sum(position**2) + lengths - 2 * products
            return jnp.argmin(distances).astype(jnp.int32)

        positions = z.astype(codes.dtype).reshape(-1, z.shape[-1])
        return jax.lax.map(nearest, positions, batch_size=_POSITIONS).reshape(z.shape[:-1])

    def decode(self, z: Array) -> Array:
        """Latent (b, h, w, z), quantised first -> image (b, f h, f w, 3), about [-1, 1]."""
        return self.decoder(self.codebook[...][self.nearest_code(z)])
