"""The SD 2.1 denoising UNet, split so that the ControlNet shares its encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.config import UNetConfig
from dossr_jax.models.attention import attention
from dossr_jax.models.layers import Dtype, Factory, LayerOptions, ResBlock

_RES_EPSILON = 1e-5
_TRANSFORMER_EPSILON = 1e-6
_MAX_PERIOD = 10_000

Remat = Literal["none", "dots", "full"]
Network = TypeVar("Network", bound=Any)  # a module with an Encoder as `encoder`
_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def timestep_embedding(t: Array, dim: int, dtype: Dtype) -> Array:
    """Sinusoidal embedding [cos, sin] of (possibly fractional) timesteps t (b,) -> (b, dim)."""
    compute = jnp.promote_types(dtype, jnp.float32)
    half = dim // 2
    frequencies = jnp.exp(-math.log(_MAX_PERIOD) / half * jnp.arange(half, dtype=compute))
    angles = t.astype(compute)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(dtype)


class TimeEmbedding(nnx.Module):
    """Two-layer MLP on the sinusoidal embedding."""

    def __init__(self, make: Factory, dim: int, time_dim: int):
        self.dim = dim
        self.dtype = make.dtype
        self.fc1 = make.linear(dim, time_dim)
        self.fc2 = make.linear(time_dim, time_dim)

    def __call__(self, t: Array) -> Array:
        """t (b,) -> (b, time_dim)."""
        return self.fc2(jax.nn.silu(self.fc1(timestep_embedding(t, self.dim, self.dtype))))


class Attention(nnx.Module):
    """Multi-head attention of x over `context` (over itself where that is None)."""

    def __init__(self, make: Factory, dim: int, context_dim: int, *, head_dim: int):
        self.heads = dim // head_dim
        self.to_q = make.linear(dim, dim, bias=False)
        self.to_k = make.linear(context_dim, dim, bias=False)
        self.to_v = make.linear(context_dim, dim, bias=False)
        self.to_out = make.linear(dim, dim)

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """x (b, n, dim), context (b or 1, m, context_dim) -> (b n, dim)."""
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (q, k, v))
        return self.to_out(attention(q, k, v).reshape(-1, x.shape[-1]))


class GEGLU(nnx.Module):
    """Feed-forward with a gated exact (erf) GELU; the second half of the projection gates."""

    def __init__(self, make: Factory, dim: int):
        self.fc1 = make.linear(dim, 8 * dim)
        self.fc2 = make.linear(4 * dim, dim)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(self.fc1(x), 2, axis=-1)
        # jax.nn.gelu defaults to the tanh approximation; the weights were trained with erf.
        return self.fc2(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and residual."""

    def __init__(self, make: Factory, dim: int, context_dim: int, *, head_dim: int):
        self.norm1 = make.layer_norm(dim)
        self.attn1 = Attention(make, dim, dim, head_dim=head_dim)
        self.norm2 = make.layer_norm(dim)
        self.attn2 = Attention(make, dim, context_dim, head_dim=head_dim)
        self.norm3 = make.layer_norm(dim)
        self.ff = GEGLU(make, dim)

    def __call__(self, x: Array, context: Array | None) -> Array:
        # Kept apart, so that each sum is written by the product before it, and read once.
        apart = jax.lax.optimization_barrier
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        x = apart(x + self.attn1(self.norm1(x).reshape(shape)))
        x = apart(x + self.attn2(self.norm2(x).reshape(shape), context))
        return apart(x + self.ff(self.norm3(x))).reshape(shape)


class SpatialTransformer(nnx.Module):
    """Transformer over the positions of a feature map, with linear projections in and out."""

    def __init__(self, make: Factory, channels: int, config: UNetConfig):
        self.norm = make.group_norm(channels, config.norm_groups, _TRANSFORMER_EPSILON)
        self.proj_in = make.linear(channels, channels)
        self.blocks = nnx.List(
            TransformerBlock(make, channels, config.context_dim, head_dim=config.head_dim)
            for _ in range(config.transformer_depth)
        )
        self.proj_out = make.linear(channels, channels)

    def __call__(self, x: Array, context: Array | None) -> Array:
        """x (b, h, w, c), context (b, m, context_dim) -> (b, h, w, c)."""
        h = self.proj_in(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        for block in self.blocks:
            h = block(h, context)
        return x + self.proj_out(h).reshape(x.shape)


class Stage(nnx.Module):
    """A residual block, followed by a transformer where the level has them."""

    def __init__(self, make: Factory, c_in: int, c_out: int, config: UNetConfig, *, attend: bool):
        options = {"groups": config.norm_groups, "time_dim": config.time_dim}
        self.res = ResBlock(make, c_in, c_out, epsilon=_RES_EPSILON, **options)
        self.transformer = SpatialTransformer(make, c_out, config) if attend else None

    def __call__(self, x: Array, temb: Array, context: Array | None) -> Array:
        x = self.res(x, temb)
        return x if self.transformer is None else self.transformer(x, context)


class DownLevel(nnx.Module):
    """The encoder stages of one resolution, then a stride-2 convolution but at the last."""

    def __init__(
        self, make: Factory, c_in: int, c_out: int, config: UNetConfig, *, attend: bool, last: bool
    ):
        self.stages = nnx.List(
            Stage(make, c_in if i == 0 else c_out, c_out, config, attend=attend)
            for i in range(config.num_res_blocks)
        )
        # Symmetric padding; SAME would pad right and bottom only, as the VAE does.
        self.downsample = None if last else make.conv(c_out, c_out, stride=2)


class UpLevel(nnx.Module):
    """The decoder stages of one resolution, then an enlargement but at the full one."""

    def __init__(
        self,
        make: Factory,
        c_in: int,
        skips: Sequence[int],
        c_out: int,
        config: UNetConfig,
        *,
        attend: bool,
        first: bool,
    ):
        self.stages = nnx.List(
            Stage(make, (c_in if i == 0 else c_out) + skip, c_out, config, attend=attend)
            for i, skip in enumerate(skips)
        )
        self.upsample = None if first else make.up_conv(c_out, c_out)


class Mid(nnx.Module):
    """Residual block, transformer, residual block at the coarsest resolution."""

    def __init__(self, make: Factory, channels: int, config: UNetConfig):
        self.stage = Stage(make, channels, channels, config, attend=True)
        self.out = Stage(make, channels, channels, config, attend=False)

    def __call__(self, x: Array, temb: Array, context: Array | None) -> Array:
        return self.out(self.stage(x, temb, context), temb, context)


def encoder_channels(config: UNetConfig) -> list[int]:
    """Channels of the encoder outputs that become skips, in order (12 entries for SD)."""
    channels = [config.model_channels]
    for level, mult in enumerate(config.channel_mult):
        channels += [mult * config.model_channels] * config.num_res_blocks
        if level < len(config.channel_mult) - 1:
            channels.append(mult * config.model_channels)
    return channels


class Encoder(nnx.Module):
    """Time embedding, first convolution, down levels and middle: the part a ControlNet copies.

    `remat` says what of a stage the backward pass recomputes instead of keeping it: nothing
    ("none"), all but products of matrices ("dots"), or everything ("full").
    """

    def __init__(self, make: Factory, in_channels: int, config: UNetConfig, *, remat: Remat):
        self.remat: Remat = remat
        self.time = TimeEmbedding(make, config.model_channels, config.time_dim)
        self.conv_in = make.conv(in_channels, config.model_channels)
        widths = [config.model_channels, *(m * config.model_channels for m in config.channel_mult)]
        self.down = nnx.List(
            DownLevel(
                make,
                widths[i],
                widths[i + 1],
                config,
                attend=config.attention_levels[i],
                last=i == len(config.channel_mult) - 1,
            )
            for i in range(len(config.channel_mult))
        )
        self.mid = Mid(make, widths[-1], config)

    def __call__(
        self, x: Array, t: Array, context: Array | None
    ) -> tuple[list[Array], Array, Array]:
        """-> (outputs of the encoder in order, output of the middle, time embedding)."""
        temb = self.time(t)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = run_stage(stage, h, temb, context, remat=self.remat)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)
                skips.append(h)
        return skips, run_stage(self.mid, h, temb, context, remat=self.remat), temb


def run_stage(stage: Any, *args: Array | None, remat: Remat) -> Array:
    """Call a stage, under rematerialisation if wanted."""
    if remat == "none":
        return stage(*args)
    return nnx.remat(lambda module, *args: module(*args), policy=_POLICIES[remat])(stage, *args)


class _Rows(nnx.Module):
    """In place of a layer of times: its outputs for some times, (n, c), by their indices."""

    def __init__(self, outputs: Array):
        self.outputs = nnx.Variable(outputs)

    def __call__(self, indices: Array) -> Array:
        # A row is a kernel of its own; within others it would keep them from being fused.
        return jax.lax.optimization_barrier(self.outputs[...][indices])


class _Known(nnx.Module):
    """In place of a layer whose input does not change: its output."""

    def __init__(self, output: Array):
        self.output = nnx.Variable(output)

    def __call__(self, _: Any) -> Array:
        return self.output[...]


class _Same(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return x


def for_steps(network: Network, times: Array, context: Array) -> Network:
    """A network to be called with indices of times (1,) for times, and None for a context.

    What depends on these alone, as keys and values of a prompt, is computed here, not in every
    step of a solver.

    Args:
      network: UNet or ControlNet. times: (n,). context: (1, m, context_dim).
    """
    network = nnx.clone(network)
    temb = network.encoder.time(times)
    network.encoder.time = _Same()
    for _, module in list(nnx.iter_modules(network)):
        if isinstance(module, ResBlock):
            put: Any = module
            put.time = _Rows(put.time(temb))
        elif isinstance(module, TransformerBlock):
            put = module.attn2
            put.to_k, put.to_v = (_Known(layer(context)) for layer in (put.to_k, put.to_v))
    return network


class UNet(nnx.Module):
    """Noise prediction e(x_t, t, context), optionally with a ControlNet's residuals."""

    def __init__(
        self, config: UNetConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        make = Factory(**options)
        self.dtype = make.dtype
        self.remat: Remat = remat
        self.encoder = Encoder(make, config.in_channels, config, remat=remat)
        skips = encoder_channels(config)
        c_in = skips[-1]
        self.up = nnx.List()
        for i in reversed(range(len(config.channel_mult))):
            c_out = config.channel_mult[i] * config.model_channels
            taken = [skips.pop() for _ in range(config.num_res_blocks + 1)]
            self.up.append(
                UpLevel(
                    make,
                    c_in,
                    taken,
                    c_out,
                    config,
                    attend=config.attention_levels[i],
                    first=i == 0,
                )
            )
            c_in = c_out
        self.norm_out = make.group_norm(c_in, config.norm_groups, _RES_EPSILON)
        self.conv_out = make.conv(c_in, config.out_channels)

    def __call__(
        self, x: Array, t: Array, context: Array | None, control: Sequence[Array] | None = None
    ) -> Array:
        """Predict the noise.

        Args:
          x: noisy latents (b, h, w, in_channels); h and w multiples of config.downscale.
          t: timesteps (b,).
          context: prompt embeddings (b, m, context_dim).
          control: residuals of a ControlNet in its order, the middle's last; None for none.

        Returns:
          (b, h, w, out_channels) in the compute dtype.
        """
        skips, h, temb = self.encoder(x.astype(self.dtype), t, context)
        if control is not None:
            *residuals, mid = control
            skips = [skip + r for skip, r in zip(skips, residuals, strict=True)]
            h = h + mid
        for level in self.up:
            for stage in level.stages:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = run_stage(stage, h, temb, context, remat=self.remat)
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)))
