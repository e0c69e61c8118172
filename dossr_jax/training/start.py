"""Weights that a run starts from: random ones, a linear autoencoder, a copied ControlNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.layers import space_to_depth
from dossr_jax.models.refiner import Refiner
from dossr_jax.models.vae import posterior_mode

Read = Callable[[str], np.ndarray]

_START_LOGVAR = -6.0


def _unit(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image, jnp.float32) / 255


def make_model(config: DoSSRConfig, seed: int, *, zero_output: bool) -> DoSSR:
    """A model to train from scratch.

    The two prompt embeddings, which no text tower made, are fixed random vectors. Residual
    branches start at zero, and with `zero_output` the UNet's output too, so that the first steps
    are gentle; behind a zero output, however, a ControlNet alone would never learn.
    """
    model = DoSSR(config, rngs=nnx.Rngs(seed))
    for name, param in weights.names_and_params(model):
        residual = name.endswith((".conv2.kernel", ".proj_out.kernel"))
        output = zero_output and name == "unet.conv_out.kernel"
        if (residual and name.startswith(("unet.", "vae."))) or output:
            param[...] = jnp.zeros_like(param[...])
    for i, param in enumerate((model.context, model.negative_context)):
        draw = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), param.shape)
        # Exact in the bfloat16 of the file that ships.
        param[...] = draw.astype(jnp.bfloat16).astype(param.dtype)
    return model


def control_is_fresh(read: Read) -> bool:
    """Whether a model's ControlNet adds nothing yet."""
    return not np.any(read("control.zero_mid.kernel"))


def with_started_control(read: Read) -> Read:
    """The model that `read` gives, its ControlNet started from the UNet.

    The UNet's encoder is copied; the first convolution's inputs for the hint and the zero
    convolutions start at zero.
    """
    encoder, target = "unet.encoder.", "control.encoder."

    def started(name: str) -> np.ndarray:
        if name.startswith("control.zero_"):
            return np.zeros_like(read(name))
        if not name.startswith(target):
            return read(name)
        value = read(encoder + name.removeprefix(target))
        if name == target + "conv_in.kernel":
            value = np.concatenate([value, np.zeros_like(value)], axis=2)
        return value

    return started


def with_fresh_refiner(read: Read, config: DoSSRConfig) -> Read:
    """The model that `read` gives, with a fresh refiner: its network copies the pre-restorer."""
    target, fresh = "refiner.net.", Refiner(config.rrdb, rngs=nnx.Rngs(0))
    started = {f"refiner.{name}": param[...] for name, param in weights.names_and_params(fresh)}

    def value(name: str) -> np.ndarray:
        if name.startswith(target):
            return read("rrdb." + name.removeprefix(target))
        return np.asarray(started[name]) if name in started else read(name)

    return value


def start_vae(model: DoSSR, images: np.ndarray) -> None:
    """Make a fresh one-level autoencoder compute the best linear code of its patches.

    The principal components of patches are worth 31 dB at once where random weights take hours
    to get there; training then starts with what is not linear. Latents get deviations
    proportional to the components' to the power 1/4: equal ones would make the process spend as
    much on faint detail as on brightness, and plain ones would leave detail below the noise of a
    sampler's last steps.

    The path through the last norm and SiLU is kept linear by giving every latent a norm group of
    its own, (p, -p, K, -K): the constants fix the norm's deviation, and silu(u) - silu(-u) = u.

    Args:
      model: from :func:`make_model`, whose residual branches are zero.
      images: (b, h, w, 3) uint8, sides multiples of the patch.
    """
    config = model.config.vae
    z, block, groups = config.z_channels, config.patch_size, config.norm_groups
    width = config.base_channels // groups
    if len(config.channel_mult) > 1 or width < 4 or z > groups:
        raise ValueError("a linear start needs one level and a norm group of 4 for every latent")
    patches = np.asarray(space_to_depth(2 * jnp.asarray(_unit(images)) - 1, block), np.float64)
    patches = patches.reshape(-1, patches.shape[-1])
    center = patches.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    deviation, axes = np.sqrt(values[::-1][:z]), axes[:, ::-1][:, :z]
    wanted = deviation**0.25 / np.sqrt(np.mean(deviation**0.5))
    anchor = 8 * wanted.max()
    gain = np.sqrt((anchor**2 + wanted**2) / 2)  # what the norm divides by
    plus = width * np.arange(z)

    def spread(conv: nnx.Conv, matrix: np.ndarray, offset: np.ndarray) -> None:
        """First convolution: group g starts as (p_g, -p_g, K, -K) with p = x matrix + offset."""
        kernel, bias = np.array(conv.kernel[...]), np.array(conv.bias[...])
        taken = plus[:, None] + np.arange(width)
        kernel[..., taken], bias[taken] = 0, 0
        for channel, sign in ((plus, 1), (plus + 1, -1)):
            kernel[1, 1][:, channel], bias[channel] = sign * matrix, sign * offset
        bias[plus + 2], bias[plus + 3] = anchor, -anchor
        conv.kernel[...], conv.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)

    def gather(conv: nnx.Conv, matrix: np.ndarray, offset: np.ndarray) -> None:
        """Last convolution: p matrix + offset out of the groups."""
        kernel = np.zeros_like(conv.kernel[...])
        kernel[1, 1, plus], kernel[1, 1, plus + 1] = gain[:, None] * matrix, -gain[:, None] * matrix
        conv.kernel[...] = jnp.asarray(kernel)
        conv.bias[...] = jnp.asarray(offset, jnp.float32)

    encoder, decoder = model.vae.encoder, model.vae.decoder
    inward = axes * (wanted / deviation)
    spread(encoder.conv_in, inward, -center @ inward)
    mean = np.eye(z, 2 * z)
    gather(encoder.conv_out, mean, np.repeat([0.0, _START_LOGVAR], z))
    spread(decoder.conv_in, np.eye(z), np.zeros(z))
    gather(decoder.conv_out, (axes * (deviation / wanted)).T, center)
    for conv in (encoder.quant_conv, decoder.post_quant_conv):
        conv.kernel[...] = jnp.eye(conv.kernel.shape[-1])[None, None]


def set_scale_factor(model: DoSSR, images: np.ndarray) -> None:
    """Make scaled latents of `images` (b, h, w, 3) uint8 have unit deviation on the whole."""
    moments = nnx.jit(lambda vae, x: vae.encode(2 * _unit(x) - 1))(model.vae, images)
    factor = round(1 / float(jnp.std(posterior_mode(moments))), 5)
    vae = dataclasses.replace(model.config.vae, scale_factor=factor)
    model.config = dataclasses.replace(model.config, vae=vae)
