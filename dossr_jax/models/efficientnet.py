"""EfficientNet-Lite0 up to stride 16, a feature network, and the distance between its features.

Architecture, "SAME" padding and input range are those of TensorFlow's models
(github.com/tensorflow/tpu, models/official/efficientnet/lite; arXiv 1905.11946), which the
published PyTorch weights were converted from: mobile inverted bottlenecks with ReLU6, without
squeeze-and-excitation. Batch norm is folded into the convolutions: the network is frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Factory, LayerOptions

STEM = 32


class BlockShape(NamedTuple):
    """One inverted bottleneck: channels in and out, depthwise kernel, stride, expansion."""

    c_in: int
    c_out: int
    size: int
    stride: int
    expand: int

    @property
    def width(self) -> int:
        """Channels of the depthwise convolution."""
        return self.c_in * self.expand


def _blocks() -> tuple[BlockShape, ...]:
    blocks = []
    c_in = STEM
    for c_out, repeats, size, stride, expand in (
        (16, 1, 3, 1, 1),
        (24, 2, 3, 2, 6),
        (40, 2, 5, 2, 6),
        (80, 3, 3, 2, 6),
        (112, 3, 5, 1, 6),
        (192, 4, 5, 2, 6),
        (320, 1, 3, 1, 6),
    ):
        for i in range(repeats):
            blocks.append(BlockShape(c_in, c_out, size, stride if i == 0 else 1, expand))
            c_in = c_out
    return tuple(blocks)


# All blocks of the published network; those from stride 32 on are not computed here.
BLOCKS = _blocks()
# A feature map is what the last block of a resolution returns.
_MAPS = [i for i, following in enumerate(BLOCKS[1:]) if following.stride == 2]


def _conv(make: Factory, c_in: int, c_out: int, size: int = 1, *, stride: int = 1) -> nnx.Conv:
    # TensorFlow's SAME: at stride 2 and even sizes one row and column fewer before than after.
    return make.layer(nnx.Conv, c_in, c_out, (size, size), strides=stride, padding="SAME")


def depthwise(x: Array, kernel: Array, strides: Sequence[int], padding: str, **_: Any) -> Array:
    """Depthwise convolution as a sum of shifted products, one per weight of the kernel.

    In place of jax.lax.conv_general_dilated, without dilation: XLA's grouped convolution takes ten
    to forty times as long on a CPU, its gradient most of all.

    Args:
      x: (b, h, w, c). kernel: (kh, kw, 1, c). strides: down and across.
      padding: as of jax.lax.conv_general_dilated.
    """
    size, (height, width) = kernel.shape[:2], x.shape[1:3]
    pads = jax.lax.padtype_to_pads((height, width), size, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((n - k) // s for n, k, s in zip(x.shape[1:3], size, strides, strict=True))

    def product(i: int, j: int) -> Array:
        below, right = i + rows * strides[0] + 1, j + columns * strides[1] + 1
        return x[:, i : below : strides[0], j : right : strides[1]] * kernel[i : i + 1, j : j + 1]

    products = [product(i, j) for i in range(size[0]) for j in range(size[1])]
    return functools.reduce(jnp.add, products)


class Block(nnx.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation, shortcut."""

    def __init__(self, make: Factory, shape: BlockShape):
        width = shape.width
        self.expand = None if shape.expand == 1 else _conv(make, shape.c_in, width)
        self.depthwise = make.layer(
            nnx.Conv,
            width,
            width,
            (shape.size, shape.size),
            strides=shape.stride,
            padding="SAME",
            feature_group_count=width,
            conv_general_dilated=depthwise,
        )
        self.project = _conv(make, width, shape.c_out)
        self.shortcut = shape.stride == 1 and shape.c_in == shape.c_out

    def __call__(self, x: Array) -> Array:
        h = x if self.expand is None else jax.nn.relu6(self.expand(x))
        h = self.project(jax.nn.relu6(self.depthwise(h)))
        return x + h if self.shortcut else h


class EfficientNetLite0(nnx.Module):
    """Images (b, h, w, 3) in [0, 1] -> feature maps at strides 2, 4, 8 and 16.

    The maps are (b, h/2, w/2, 16), (b, h/4, w/4, 24), (b, h/8, w/8, 40) and (b, h/16, w/16, 112),
    sizes rounded up. The published PyTorch network pads as for 224 x 224 pixels, which is the same
    where h and w are multiples of 16.
    """

    def __init__(self, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.stem = _conv(make, 3, STEM, 3, stride=2)
        self.blocks = nnx.List(Block(make, shape) for shape in BLOCKS[: _MAPS[-1] + 1])

    def __call__(self, images: Array) -> list[Array]:
        """Feature maps in the dtype of the arithmetic, finest first."""
        # MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py, on images up to 255.
        x = ((255 * images - 127) / 128).astype(self.dtype)
        x = jax.nn.relu6(self.stem(x))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in _MAPS:
                maps.append(x)
        return maps


def feature_distance(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Distance of two lists of feature maps per image, (b,), from 0 to 4; in float32 at least.

    LPIPS without its learned weights (arXiv 1801.03924, equation 1): features are scaled to unit
    length at each position; the squared length of their difference is averaged over positions,
    then over maps.

    Args:
      a, b: maps (b, h, w, c) of the same shapes, as :class:`EfficientNetLite0` returns them.
    """

    def unit(x: Array) -> Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Without the small number the gradient at features of zero would be NaN.
        return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-10)

    distances = [
        jnp.mean(jnp.sum((unit(x) - unit(y)) ** 2, axis=-1), axis=(1, 2))
        for x, y in zip(a, b, strict=True)
    ]
    return jnp.mean(jnp.stack(distances), axis=0)
