"""Layers shared by the networks: norms, residual blocks, attention, resampling.

All images are NHWC. `dtype` is the dtype of the arithmetic, `param_dtype` that of the stored
parameters. Norm statistics are taken in float32 at least, in float64 when computing in float64.
"""

from __future__ import annotations

import functools
from typing import Any, Required, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Dtype = Any


class LayerOptions(TypedDict, total=False):
    """Keywords of every network: its dtypes, float32 by default, and the random streams."""

    dtype: Dtype
    param_dtype: Dtype
    rngs: Required[nnx.Rngs]


class Factory:
    """Builds layers that share dtypes and random streams, so that call sites name shapes only."""

    def __init__(
        self, *, dtype: Dtype = jnp.float32, param_dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.dtype, self.param_dtype, self.rngs = dtype, param_dtype, rngs
        self.options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

    def conv(
        self, c_in: int, c_out: int, size: int = 3, *, stride: int = 1, **options: Any
    ) -> nnx.Conv:
        """Square convolution with symmetric zero padding: PyTorch's padding=1 for sizes 3 and 4."""
        pad = (size - 1) // 2
        return nnx.Conv(
            c_in,
            c_out,
            (size, size),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            **self.options,
            **options,
        )

    def zero_conv(self, c_in: int, c_out: int) -> nnx.Conv:
        """1x1 convolution that starts at zero, so that what it feeds starts without it."""
        return self.conv(c_in, c_out, 1, kernel_init=nnx.initializers.zeros_init())

    def linear(self, d_in: int, d_out: int, *, bias: bool = True) -> nnx.Linear:
        return nnx.Linear(d_in, d_out, use_bias=bias, **self.options)

    def group_norm(self, channels: int, groups: int, epsilon: float) -> nnx.GroupNorm:
        # The fast variance, E[x^2] - E[x]^2, cancels and can come out negative.
        return nnx.GroupNorm(
            channels, groups, epsilon=epsilon, use_fast_variance=False, **self.options
        )

    def layer_norm(self, channels: int) -> nnx.LayerNorm:
        # PyTorch's default epsilon; nnx's is 1e-6.
        return nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, **self.options)

    def normal(self, shape: tuple[int, ...], deviation: float) -> nnx.Param:
        """Parameters of a normal distribution around zero."""
        draws = jax.random.normal(self.rngs.params(), shape, self.param_dtype)
        return nnx.Param(deviation * draws)


def attention(q: Array, k: Array, v: Array, *, causal: bool = False) -> Array:
    """Scaled dot-product attention, scale 1/sqrt(d).

    Args:
      q: (b, n, heads, d). k, v: (b, m, heads, d).
      causal: position i sees positions <= i only.

    Returns:
      (b, n, heads, d) in the dtype of q.
    """
    plain = functools.partial(_plain_attention, causal=causal)
    if q.dtype == jnp.float64:
        return plain(q, k, v)
    library = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    # The platform that the program is compiled for decides, not the one at hand while tracing.
    cudnn = "cudnn" if _suits_cudnn(q, k) and _finds_cudnn() else None
    return jax.lax.platform_dependent(
        q, k, v, cpu=plain, cuda=functools.partial(library, implementation=cudnn), default=library
    )


# Logits that fit a core's cache; more of them are computed block by block.
_BLOCK_LOGITS = 2**19


def _plain_attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """:func:`attention` in matrix products, softmax in float32 at least.

    jax.nn.dot_product_attention takes its softmax in float32 even in float64, and on a CPU writes
    out all logits: at 4096 positions it needs six times as long as this.
    """
    b, n, heads, d = q.shape
    compute = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.swapaxes(a, 1, 2).reshape(b * heads, -1, d) for a in (q, k, v))

    def rows(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=compute)
        logits = logits * d**-0.5
        if causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1).astype(v.dtype) @ v

    blocks = 1 if causal else -(-n * k.shape[1] // _BLOCK_LOGITS)
    if blocks == 1:
        out = rows(q, k, v)
    else:
        length = -(-n // blocks)
        q = jnp.pad(q, ((0, 0), (0, blocks * length - n), (0, 0)))
        q = q.reshape(b * heads * blocks, length, d)
        out = jax.lax.map(
            lambda i: rows(q[i], k[i // blocks], v[i // blocks]), jnp.arange(b * heads * blocks)
        )
        out = out.reshape(b * heads, blocks * length, d)[:, :n]
    return jnp.swapaxes(out.reshape(b, heads, n, d), 1, 2)


def _suits_cudnn(q: Array, k: Array) -> bool:
    """cuDNN's flash kernel takes 16-bit heads of up to 128 in multiples of 8, and even lengths."""
    heads = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    return heads and q.shape[1] % 2 == k.shape[1] % 2 == 0


@functools.cache
def _finds_cudnn() -> bool:
    """Whether this installation can trace cuDNN's kernel; one for CPUs alone cannot."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(
            functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x
        )
    except RuntimeError:
        return False
    return True


def nearest_x2(x: Array) -> Array:
    """Nearest-neighbour enlargement (b, h, w, c) -> (b, 2h, 2w, c)."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def bilinear_x2(x: Array) -> Array:
    """Bilinear enlargement (b, h, w, c) -> (b, 2h, 2w, c), PyTorch's with align_corners=False."""
    b, h, w, c = x.shape
    # At full precision: the weights 1/4 and 3/4 multiply whole features.
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "linear", precision=jax.lax.Precision.HIGHEST)


def space_to_depth(x: Array, block: int) -> Array:
    """(b, h, w, c) -> (b, h/block, w/block, c block^2), channels ordered as (c, row, column).

    That is the order of PyTorch's pixel_unshuffle, so that converted weights fit.
    """
    if block == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // block, w // block, c * block**2)


def depth_to_space(x: Array, block: int) -> Array:
    """Inverse of :func:`space_to_depth`; PyTorch's pixel_shuffle."""
    if block == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // block**2, block, block)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * block, w * block, c // block**2)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut.

    `time_dim` None leaves the time projection out (VAE). `epsilon` is 1e-5 in the UNet and 1e-6
    in the VAE.
    """

    def __init__(
        self,
        make: Factory,
        c_in: int,
        c_out: int,
        *,
        groups: int,
        epsilon: float,
        time_dim: int | None = None,
    ):
        self.norm1 = make.group_norm(c_in, groups, epsilon)
        self.conv1 = make.conv(c_in, c_out)
        self.time = None if time_dim is None else make.linear(time_dim, c_out)
        self.norm2 = make.group_norm(c_out, groups, epsilon)
        self.conv2 = make.conv(c_out, c_out)
        self.shortcut = None if c_in == c_out else make.conv(c_in, c_out, 1)

    def __call__(self, x: Array, temb: Array | None = None) -> Array:
        """x (b, h, w, c_in), temb (b, time_dim) -> (b, h, w, c_out)."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time is not None:
            assert temb is not None
            h = h + self.time(jax.nn.silu(temb))[:, None, None, :]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))
