"""A one-level autoencoder that starts as the best linear code of its patches."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.layers import space_to_depth

_START_LOGVAR = -6.0


def start_from_linear_code(model: DoSSR, images: np.ndarray) -> None:
    """Make a fresh one-level autoencoder compute the best linear code of its patches.

    The principal components of patches are worth 31 dB at once where random weights take hours
    to get there; training then starts with what is not linear. Latents get deviations
    proportional to the components' to the power 1/4: equal ones would make the process spend as
    much on faint detail as on brightness, and plain ones would leave detail below the noise of a
    sampler's last steps.

    The path through the last norm and SiLU is kept linear by giving every latent a norm group of
    its own, (p, -p, K, -K): the constants fix the norm's deviation, and silu(u) - silu(-u) = u.

    Args:
      model: from initialize.make_model; its residual branches are zero.
      images: (b, h, w, 3) uint8, sides multiples of the patch.
    """
    config = model.config.vae
    z, block, groups = config.z_channels, config.patch_size, config.norm_groups
    width = config.base_channels // groups
    if len(config.channel_mult) > 1 or width < 4 or z > groups:
        raise ValueError("a linear start needs one level and a norm group of 4 for every latent")
    patches = np.asarray(
        space_to_depth(2 * jnp.asarray(images, jnp.float32) / 255 - 1, block), np.float64
    )
    patches = patches.reshape(-1, patches.shape[-1])
    center = patches.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    deviation, axes = np.sqrt(values[::-1][:z]), axes[:, ::-1][:, :z]
    wanted = deviation**0.25 / np.sqrt(np.mean(deviation**0.5))
    anchor = 8 * wanted.max()
    gain = np.sqrt((anchor**2 + wanted**2) / 2)  # what the norm divides by
    plus = width * np.arange(z)

    def spread(conv: Any, matrix: np.ndarray, offset: np.ndarray) -> None:
        """First convolution: group g starts as (p_g, -p_g, K, -K) with p = x matrix + offset."""
        kernel, bias = np.array(conv.kernel[...]), np.array(conv.bias[...])
        taken = plus[:, None] + np.arange(width)
        kernel[..., taken], bias[taken] = 0, 0
        for channel, sign in ((plus, 1), (plus + 1, -1)):
            kernel[1, 1][:, channel], bias[channel] = sign * matrix, sign * offset
        bias[plus + 2], bias[plus + 3] = anchor, -anchor
        conv.kernel[...], conv.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)

    def collect(conv: Any, matrix: np.ndarray, offset: np.ndarray) -> None:
        """Last convolution: p matrix + offset out of the groups."""
        kernel = np.zeros_like(conv.kernel[...])
        kernel[1, 1, plus], kernel[1, 1, plus + 1] = gain[:, None] * matrix, -gain[:, None] * matrix
        conv.kernel[...] = jnp.asarray(kernel)
        conv.bias[...] = jnp.asarray(offset, jnp.float32)

    encoder, decoder = model.vae.encoder, model.vae.decoder
    inward = axes * (wanted / deviation)
    spread(encoder.conv_in, inward, -center @ inward)
    mean = np.eye(z, 2 * z)
    collect(encoder.conv_out, mean, np.repeat([0.0, _START_LOGVAR], z))
    spread(decoder.conv_in, np.eye(z), np.zeros(z))
    collect(decoder.conv_out, (axes * (deviation / wanted)).T, center)
    convs: tuple[Any, ...] = encoder.quant_conv, decoder.post_quant_conv
    for conv in convs:
        conv.kernel[...] = jnp.eye(conv.kernel.shape[-1])[None, None]
