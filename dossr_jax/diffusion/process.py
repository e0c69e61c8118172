"""Forward process, conversions between eps and x0, training loss, guidance: pure jnp.

Levels arrive as arrays that broadcast over the NHWC latent; `take_levels` makes them from tables
and times. Source: DoSSR, arXiv 2409.17778, section 3.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from dossr_jax.config.sampler import Prediction

Latent = Float[Array, "b h w c"]
Level = Array | float  # a number, or an array that broadcasts over the latent


def take_levels(table: Float[Array, " *table"], t: Int[Array, " b"]) -> Float[Array, "b _ _ _"]:
    """Rows of a schedule table at integer times `t` (b,), ready to broadcast over NHWC.

    A table (T,) gives (b, 1, 1, 1); a table (T, 1 or b, h, w, c), an eta that varies over the
    latent, gives each sample its own row and map: (b, h, w, c).
    """
    if table.ndim == 1:
        return table[t][:, None, None, None]
    sample = jnp.arange(len(t)) if table.shape[1] > 1 else 0
    return table[t, sample]


def q_sample(
    x0: Latent, x_lr: Latent, alpha: Level, sigma: Level, eta: Level, eps: Latent
) -> Latent:
    """Forward marginal alpha ((1 - eta) x0 + eta x_lr) + sigma eps, (b, h, w, c)."""
    return alpha * ((1 - eta) * x0 + eta * x_lr) + sigma * eps


def eps_to_x0(x: Latent, eps: Latent, alpha: Level, sigma: Level) -> Latent:
    """The data prediction D = (x - sigma eps) / alpha that the network's eps stands for.

    It is trained to be x0 itself, not the mixture of x0 and x_lr that x is centred on.
    """
    return (x - sigma * eps) / alpha


def v_to_x0(x: Latent, v: Latent, alpha: Level, sigma: Level) -> Latent:
    """The data prediction that v = alpha eps - sigma x0 stands for, also where alpha is 0."""
    return alpha * x - sigma * v


def to_x0(x: Latent, output: Latent, alpha: Level, sigma: Level, prediction: Prediction) -> Latent:
    """The data prediction that a network's output stands for, by what it predicts."""
    convert = v_to_x0 if prediction == "v" else eps_to_x0
    return convert(x, output, alpha, sigma)


def x0_to_eps(x: Latent, x0: Latent, alpha: Level, sigma: Level) -> Latent:
    """Inverse of :func:`eps_to_x0`."""
    return (x - alpha * x0) / sigma


def training_loss(x0: Latent, prediction: Latent, *, per_sample: bool = False) -> Float[Array, ...]:
    """Mean |x0 - D| of the data prediction D: scalar, or (b,) per sample."""
    error = jnp.abs(x0 - prediction)
    return error.mean(axis=tuple(range(1, error.ndim)) if per_sample else None)


def guide(eps_cond: Latent, eps_uncond: Latent, scale: ArrayLike) -> Latent:
    """Classifier-free guidance: scale 1 is `eps_cond`, 0 `eps_uncond`, above 1 extrapolates."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


def toward_lr(x0: Latent, x_lr: Latent, fidelity: ArrayLike) -> Latent:
    """A prediction drawn towards the LR latent: `fidelity` 0 leaves it, 1 is `x_lr` itself."""
    return jnp.asarray((1 - fidelity) * x0 + fidelity * x_lr)
