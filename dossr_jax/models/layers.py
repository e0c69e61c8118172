"""Layers shared by the networks: norms, residual blocks, attention, resampling.

All images are NHWC. `dtype` is the dtype of the arithmetic, `param_dtype` that of the stored
parameters. Norm statistics are taken in float32 at least, in float64 when computing in float64.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Required, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax.models.convolution import UpConv, add_bias, convolve, value

Dtype = Any
M = TypeVar("M", bound=nnx.Module)


class Shapes:
    """In place of nnx.Rngs: a Factory builds layers of shapes, jax.ShapeDtypeStruct, not of arrays.

    nnx runs hundreds of checks per layer and JAX traces every initialiser. Here nothing is drawn,
    and layers that are alike are copies of one. What is built without a Factory still draws.
    """

    def __init__(self):
        self._built: dict[Any, tuple[nnx.GraphDef, nnx.State]] = {}
        # A key of NumPy's numbers: jax.random.key compiles a program.
        zeros: Any = np.zeros(2, np.uint32)
        self._key = jax.random.wrap_key_data(zeros, impl="threefry2x32")

    def params(self) -> Array:
        return self._key

    def layer(self, make: Callable[..., M], *args: Any, **options: Any) -> M:
        """`make(*args, **options)`, a layer of nnx, whatever initialisers are asked for."""
        options |= dict.fromkeys(_initializers(make), _shape)
        key = make, args, tuple(sorted(options.items()))
        if key not in self._built:
            self._built[key] = nnx.split(make(*args, **options, rngs=self))
        return _copies(self._built[key], 1)[0]


def _copies(split: tuple[nnx.GraphDef, nnx.State], count: int) -> list[Any]:
    """Modules that share nothing, of one that was split."""
    return [nnx.merge(*split, copy=True) for _ in range(count)]


def _shape(key: Any, shape: tuple[int, ...], dtype: Dtype) -> jax.ShapeDtypeStruct:
    """An initialiser that draws nothing."""
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


@functools.cache
def _initializers(make: Callable[..., Any]) -> list[str]:
    """The names of its arguments that are initialisers."""
    # The metaclass of nnx hides the signature of a class.
    arguments = inspect.signature(make.__init__ if isinstance(make, type) else make).parameters
    return [name for name in arguments if name.endswith("_init")]


class LayerOptions(TypedDict, total=False):
    """Keywords of every network: its dtypes, float32 by default, and the random streams."""

    dtype: Dtype
    param_dtype: Dtype
    rngs: Required[nnx.Rngs | Shapes]


class Factory:
    """Builds layers that share dtypes and random streams, so that call sites name shapes only."""

    def __init__(
        self,
        *,
        dtype: Dtype = jnp.float32,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs | Shapes,
    ):
        self.dtype, self.param_dtype, self.rngs = dtype, param_dtype, rngs

    def layer(self, make: Callable[..., M], *args: Any, **options: Any) -> M:
        """A layer of nnx, `make(*args, **options)` with the factory's dtypes and random streams."""
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if isinstance(self.rngs, Shapes):
            return self.rngs.layer(make, *args, **options)
        return make(*args, **options, rngs=self.rngs)

    def repeat(self, count: int, block: Callable[..., M], *args: Any) -> list[M]:
        """`count` times block(self, *args)."""
        if isinstance(self.rngs, Shapes):
            return _copies(nnx.split(block(self, *args)), count)
        return [block(self, *args) for _ in range(count)]

    def conv(
        self, c_in: int, c_out: int, size: int = 3, *, stride: int = 1, **options: Any
    ) -> nnx.Conv:
        """Square convolution with symmetric zero padding: PyTorch's padding=1 for sizes 3 and 4."""
        pad = (size - 1) // 2
        return self.layer(
            nnx.Conv,
            c_in,
            c_out,
            (size, size),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            conv_general_dilated=convolve,
            **options,
        )

    def up_conv(self, c_in: int, c_out: int) -> UpConv:
        """3x3 convolution of twice the size."""
        return self.layer(UpConv, c_in, c_out, (3, 3), padding=((1, 1), (1, 1)))

    def zero_conv(self, c_in: int, c_out: int) -> nnx.Conv:
        """1x1 convolution that starts at zero, so that what it feeds starts without it."""
        return self.conv(c_in, c_out, 1, kernel_init=nnx.initializers.zeros_init())

    def linear(self, d_in: int, d_out: int, *, bias: bool = True) -> nnx.Linear:
        return self.layer(nnx.Linear, d_in, d_out, use_bias=bias)

    def group_norm(self, channels: int, groups: int, epsilon: float) -> GroupNorm:
        return self.layer(GroupNorm, channels, groups, epsilon=epsilon, use_fast_variance=False)

    def layer_norm(self, channels: int) -> nnx.LayerNorm:
        # PyTorch's default epsilon; nnx's is 1e-6.
        return self.layer(nnx.LayerNorm, channels, epsilon=1e-5, use_fast_variance=False)

    def normal(self, shape: tuple[int, ...], deviation: float) -> nnx.Param:
        """Parameters of a normal distribution around zero."""
        if isinstance(self.rngs, Shapes):
            return nnx.Param(_shape(None, shape, self.param_dtype))
        draws = jax.random.normal(self.rngs.params(), shape, self.param_dtype)
        return nnx.Param(deviation * draws)

    def constant(self, shape: tuple[int, ...], value: float) -> nnx.Param:
        """Parameters that all start at `value`."""
        if isinstance(self.rngs, Shapes):
            return nnx.Param(_shape(None, shape, self.param_dtype))
        return nnx.Param(jnp.full(shape, value, self.param_dtype))


class GroupNorm(nnx.GroupNorm):
    """Group normalisation (b, ..., c) -> the same; 16-bit input is read once for its statistics."""

    def __call__(self, x: Array, shift: Array | None = None) -> Array:
        """Normalise x + shift, of which there are (b or 1, c) by channel."""
        positions = tuple(range(1, x.ndim - 1))
        if jnp.finfo(self.dtype).bits > 16:
            return super().__call__(x if shift is None else x + jnp.expand_dims(shift, positions))
        # By channels, then by groups: in this order memory is read in rows.
        wide = x.astype(self.dtype).astype(jnp.float32)
        means, squares = jnp.mean(wide, positions), jnp.mean(jnp.square(wide), positions)
        shift = jnp.zeros((1, 1)) if shift is None else shift.astype(jnp.float32)
        squares = squares + shift * (2 * means + shift)
        mean, square = (
            moment.reshape(len(x), self.num_groups, -1).mean(-1)
            for moment in (means + shift, squares)
        )
        # The difference cancels in float32, but less than 16-bit input was rounded.
        factor = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        factor, mean = (jnp.repeat(a, self.group_size, axis=1) for a in (factor, mean))
        factor = factor * value(self.scale).astype(jnp.float32)[None]
        offset = add_bias((shift - mean) * factor, value(self.bias))
        factor, offset = (jnp.expand_dims(a, positions) for a in (factor, offset))
        return (wide * factor + offset).astype(self.dtype)


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


class TimeShift(nnx.Linear):
    """Time embeddings (b, time_dim) -> what is added to a residual block's features, (b, c)."""

    def __call__(self, temb: Array) -> Array:
        return super().__call__(jax.nn.silu(temb))


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
        self.time = None if time_dim is None else make.layer(TimeShift, time_dim, c_out)
        self.norm2 = make.group_norm(c_out, groups, epsilon)
        self.conv2 = make.conv(c_out, c_out)
        self.shortcut = None if c_in == c_out else make.conv(c_in, c_out, 1)

    def __call__(self, x: Array, temb: Array | None = None) -> Array:
        """x (b, h, w, c_in), temb (b or 1, time_dim) -> (b, h, w, c_out)."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        shift = None if self.time is None or temb is None else self.time(temb)
        h = self.conv2(jax.nn.silu(self.norm2(h, shift)))
        return h + (x if self.shortcut is None else self.shortcut(x))
