"""Forward process, conversions between eps and x0, training loss, guidance: pure jnp.

Levels arrive as arrays that broadcast over the NHWC latent; `take_levels` makes them from tables
and times. Source: DoSSR, arXiv 2409.17778, section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def take_levels(table: jax.Array, t: jax.Array) -> jax.Array:
    """Rows of a schedule table at integer times `t` (b,), ready to broadcast over NHWC.

    A table (T,) gives (b, 1, 1, 1); a table (T, 1 or b, h, w, c), an eta that varies over the
    latent, gives each sample its own row and map: (b, h, w, c).
    """
    if table.ndim == 1:
        return table[t][:, None, None, None]
    sample = jnp.arange(len(t)) if table.shape[1] > 1 else 0
    return table[t, sample]


def q_sample(
    x0: jax.Array,
    x_lr: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    eta: jax.Array,
    eps: jax.Array,
) -> jax.Array:
    """Forward marginal alpha ((1 - eta) x0 + eta x_lr) + sigma eps, (b, h, w, c)."""
    return alpha * ((1 - eta) * x0 + eta * x_lr) + sigma * eps


def eps_to_x0(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The data prediction D = (x - sigma eps) / alpha that the network's eps stands for.

    It is trained to be x0 itself, not the mixture of x0 and x_lr that x is centred on.
    """
    return (x - sigma * eps) / alpha


def x0_to_eps(x: jax.Array, x0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Inverse of :func:`eps_to_x0`."""
    return (x - alpha * x0) / sigma


def training_loss(x0: jax.Array, prediction: jax.Array, *, per_sample: bool = False) -> jax.Array:
    """Mean |x0 - D| of the data prediction D: scalar, or (b,) per sample."""
    error = jnp.abs(x0 - prediction)
    return error.mean(axis=tuple(range(1, error.ndim)) if per_sample else None)


def guide(eps_cond: jax.Array, eps_uncond: jax.Array, scale: ArrayLike) -> jax.Array:
    """Classifier-free guidance: scale 1 is `eps_cond`, 0 `eps_uncond`, above 1 extrapolates."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


def toward_lr(x0: jax.Array, x_lr: jax.Array, fidelity: ArrayLike) -> jax.Array:
    """A prediction drawn towards the LR latent: `fidelity` 0 leaves it, 1 is `x_lr` itself."""
    return jnp.asarray((1 - fidelity) * x0 + fidelity * x_lr)
