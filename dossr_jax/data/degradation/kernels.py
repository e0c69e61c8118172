"""Blur kernels on a canvas of 21x21 with a traced size, as in Real-ESRGAN.

Six kinds differ in shape and tail; with q = o^T S^-1 o for the offset o from the centre and a
covariance S that is round or turned by an angle:

    Gaussian exp(-q/2)      generalised exp(-q^beta / 2)      plateau 1 / (1 + q^beta)

The seventh is the circular ideal low-pass ("sinc"), whose ringing imitates sharpened photos. All
are zero outside the given size and sum to one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
CANVAS = 21

_OFFSETS = np.arange(CANVAS) - CANVAS // 2
# J1(x) is the mean of cos(tau - x sin tau) over half a turn. The midpoint rule converges faster
# than any power on a periodic function: 40 points are exact for x up to 60, and 45 is the largest.
_TAU = (np.pi * (np.arange(40, dtype=np.float32) + 0.5) / 40).reshape(1, 1, 40)


def blur_kernel(
    kind: jax.Array, size: jax.Array, sigma: jax.Array, angle: jax.Array, beta: jax.Array
) -> jax.Array:
    """Normalised kernel of one of the six kinds.

    Args:
      kind: index into KINDS.
      size: odd side of the support, 1 to 21.
      sigma: (2,) standard deviations along the axes before turning; round kinds use the first.
      angle: radians from the x axis towards the y axis; round kinds ignore it.
      beta: exponent of the generalised and plateau kinds.

    Returns:
      (21, 21) float32, rows are y.
    """
    x, y = jnp.asarray(_OFFSETS[None, :], jnp.float32), jnp.asarray(_OFFSETS[:, None], jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = ((x * cos + y * sin) / sigma[0]) ** 2 + ((y * cos - x * sin) / sigma[1]) ** 2
    round_ = (x**2 + y**2) / sigma[0] ** 2
    form = jnp.where(kind % 2 == 0, round_, turned)
    family = kind // 2
    power = form ** jnp.where(family == 0, 1.0, beta)
    return _normalised(jnp.where(family == 2, 1 / (1 + power), jnp.exp(-0.5 * power)), size)


def sinc_kernel(size: jax.Array, cutoff: jax.Array) -> jax.Array:
    """Circular low-pass: cutoff J1(cutoff r) / (2 pi r), normalised over its support.

    Args:
      size: odd side of the support, 1 to 21.
      cutoff: radians per pixel, up to pi.

    Returns:
      (21, 21) float32.
    """
    # One quarter is computed, the rest mirrored.
    axis = np.arange(CANVAS // 2 + 1)
    radius = np.hypot(axis[:, None], axis[None, :]).astype(np.float32)
    safe = np.maximum(radius, 1)
    bessel = jnp.mean(jnp.cos(_TAU - cutoff * safe[..., None] * np.sin(_TAU)), axis=-1)
    quarter = jnp.where(radius > 0, cutoff * bessel / (2 * np.pi * safe), cutoff**2 / (4 * np.pi))
    mirror = np.abs(_OFFSETS)
    return _normalised(quarter[mirror][:, mirror], size)


def _normalised(kernel: jax.Array, size: jax.Array) -> jax.Array:
    reach = np.maximum(np.abs(_OFFSETS)[:, None], np.abs(_OFFSETS)[None, :])
    kernel = jnp.where(reach <= size // 2, kernel, 0.0)
    return kernel / jnp.sum(kernel)
