"""DASR's networks: predictor of mixing weights, and an SRResNet whose kernels they mix.

Source: "Efficient and Degradation-Adaptive Network for Real-World Image Super-Resolution",
ECCV 2022. Every convolution of the generator has one kernel per expert; an image's own kernels are
their sum, weighted by what the predictor makes of that image.
"""

from __future__ import annotations

import itertools
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax.image import valid_part
from dossr_jax.models.convolution import DIMENSIONS
from dossr_jax.models.layers import Dtype, Factory, LayerOptions, depth_to_space
from dossr_jax.systems.dasr.config import DASRConfig

_PREDICTOR_SLOPE = 0.2
_GENERATOR_SLOPE = 0.1
PREDICTOR_STRIDES = (1, 1, 1, 2, 1, 1)  # of its convolutions
_HIGHEST = jax.lax.Precision.HIGHEST


def _exact(dtype: Dtype) -> Dtype:
    """The dtype of what few numbers decide: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


class Predictor(nnx.Module):
    """Numbers that describe an image's degradation, and its mixing weights.

    The weights are not normalised: they may be negative and need not sum to one.
    """

    def __init__(self, config: DASRConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        widths = 3, *[config.predictor_features] * (len(PREDICTOR_STRIDES) - 1), config.num_params
        self.convs = nnx.List(
            make.conv(c_in, c_out, 5, stride=stride)
            for (c_in, c_out), stride in zip(
                itertools.pairwise(widths), PREDICTOR_STRIDES, strict=True
            )
        )
        # A few numbers, of which every kernel of the generator is made.
        exact = Factory(**{**options, "dtype": _exact(make.dtype)})
        self.hidden = exact.layer(nnx.Linear, config.num_params, config.hidden, precision=_HIGHEST)
        self.out = exact.layer(nnx.Linear, config.hidden, config.num_experts, precision=_HIGHEST)

    def __call__(self, image: Array, size: Array | None = None) -> tuple[Array, Array]:
        """Describe images, each in the top-left part of its canvas.

        Args:
          image: (b, h, w, 3) in [0, 1]. What lies outside the valid part has no influence.
          size: valid rows and columns of every canvas, int32 (b, 2); whole canvases where None.

        Returns:
          Parameters of the degradation (b, num_params), scaled to about [0, 1], and mixing weights
          (b, num_experts), in float32 at least.
        """
        if size is None:
            size = jnp.broadcast_to(jnp.array(image.shape[1:3], jnp.int32), (len(image), 2))
        # Every layer has to find zeros around the image, as it pads with them: also the one of
        # stride 2, which keeps ceil(n / 2) of n rows.
        h = _inside(image.astype(self.dtype), size)
        for conv, stride in zip(self.convs, PREDICTOR_STRIDES, strict=True):
            size = -(-size // stride)
            h = _inside(jax.nn.leaky_relu(conv(h), _PREDICTOR_SLOPE), size)
        params = _mean(h.astype(_exact(self.dtype)), size)
        return params, self.out(self.hidden(params))


def _inside(x: Array, size: Array) -> Array:
    """Canvases x (b, h, w, c) with zeros outside their valid parts."""
    return jnp.where(valid_part(x, size), x, 0)


def _mean(x: Array, size: Array) -> Array:
    """Mean over the valid parts of canvases that are zero elsewhere, (b, h, w, c) -> (b, c)."""
    return jnp.sum(x, axis=(1, 2)) / jnp.prod(size.astype(x.dtype), axis=1)[:, None]


class ExpertConv(nnx.Module):
    """3x3 convolution, zero padding 1, with a kernel and a bias per expert to be mixed."""

    def __init__(self, make: Factory, c_in: int, c_out: int, experts: int):
        self.dtype = make.dtype
        self.kernel = make.normal((experts, 3, 3, c_in, c_out), (9 * c_in) ** -0.5)
        self.bias = make.constant((experts, c_out), 0.0)

    def mix(self, weights: Array) -> tuple[Array, Array]:
        """Weights (b, experts) -> kernels (b, 3, 3, c_in, c_out) and biases (b, c_out)."""
        exact = _exact(self.dtype)

        def mixed(param: nnx.Param) -> Array:
            experts = param[...].astype(exact)
            total = jnp.tensordot(weights.astype(exact), experts, axes=1, precision=_HIGHEST)
            return total.astype(self.dtype)

        return mixed(self.kernel), mixed(self.bias)

    def __call__(self, x: Array, weights: Array) -> Array:
        """x (b, h, w, c_in), weights (b, experts) -> (b, h, w, c_out)."""
        kernel, bias = self.mix(weights)
        # Side by side is one grouped convolution, which takes four times as long on a CPU.
        convolved = jax.lax.platform_dependent(x, kernel, cpu=one_by_one, default=side_by_side)
        return convolved + bias[:, None, None, :]


def _convolve(x: Array, kernel: Array) -> Array:
    """x (h, w, c_in), kernel (3, 3, c_in, c_out) -> (h, w, c_out)."""
    convolved = jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=DIMENSIONS
    )
    return convolved[0]


def one_by_one(x: Array, kernel: Array) -> Array:
    """x (b, h, w, c_in), kernel (b, 3, 3, c_in, c_out) -> (b, h, w, c_out), image after image."""
    return jax.lax.map(lambda pair: _convolve(*pair), (x, kernel))


def side_by_side(x: Array, kernel: Array) -> Array:
    """As :func:`one_by_one`, all images at once."""
    return jax.vmap(_convolve)(x, kernel)


class ResidualBlock(nnx.Module):
    """Convolution, ReLU, convolution, + input."""

    def __init__(self, make: Factory, features: int, experts: int):
        self.conv1 = ExpertConv(make, features, features, experts)
        self.conv2 = ExpertConv(make, features, features, experts)

    def __call__(self, x: Array, weights: Array) -> Array:
        return x + self.conv2(jax.nn.relu(self.conv1(x, weights)), weights)


def _lrelu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, _GENERATOR_SLOPE)


class Generator(nnx.Module):
    """SRResNet of mixed kernels on top of bilinear enlargement; nothing leads around its body."""

    def __init__(self, config: DASRConfig, **options: Unpack[LayerOptions]):
        make = Factory(**options)
        self.dtype = make.dtype
        self.config = config
        features, experts = config.num_features, config.num_experts
        self.conv_first = ExpertConv(make, 3, features, experts)
        self.body = nnx.List(make.repeat(config.num_blocks, ResidualBlock, features, experts))
        self.upconvs = nnx.List(
            ExpertConv(make, features, features * factor**2, experts)
            for factor in shuffles(config.upscale)
        )
        self.conv_hr = ExpertConv(make, features, features, experts)
        self.conv_last = ExpertConv(make, features, 3, experts)

    def __call__(self, image: Array, weights: Array) -> Array:
        """Enlarge images, or parts of images.

        Args:
          image: (b, h, w, 3) in [0, 1].
          weights: mixing weights (b, experts) of the image that each of them belongs to.

        Returns:
          (b, upscale h, upscale w, 3), about [0, 1], not clipped, in float32 at least.
        """
        h = _lrelu(self.conv_first(image.astype(self.dtype), weights))
        for block in self.body:
            h = block(h, weights)
        for conv, factor in zip(self.upconvs, shuffles(self.config.upscale), strict=True):
            h = _lrelu(depth_to_space(conv(h, weights), factor))
        residual = self.conv_last(_lrelu(self.conv_hr(h, weights)), weights)
        exact = _exact(self.dtype)
        base = enlarge_bilinearly(image.astype(exact), self.config.upscale)
        return base + residual.astype(exact)


def shuffles(upscale: int) -> tuple[int, ...]:
    """Factors of the successive enlargements: 4 is 2 times 2, 2 and 3 are one step."""
    return (2, 2) if upscale == 4 else (upscale,)


def enlarge_bilinearly(x: Array, factor: int) -> Array:
    """(b, h, w, c) -> (b, factor h, factor w, c), PyTorch's bilinear with align_corners=False."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, factor * h, factor * w, c), "linear", precision=_HIGHEST)


class DASR(nnx.Module):
    """Predictor and generator.

    To restore an image tile by tile, predict once from the whole image and give all tiles its
    weights: the generator is another network at other weights.
    """

    def __init__(self, config: DASRConfig, **options: Unpack[LayerOptions]):
        self.config = config
        self.predictor = Predictor(config, **options)
        self.generator = Generator(config, **options)

    def __call__(self, image: Array, size: Array | None = None) -> Array:
        """image (b, h, w, 3), size as in Predictor -> (b, upscale h, upscale w, 3), not clipped."""
        _, weights = self.predictor(image, size)
        return self.generator(image, weights)
