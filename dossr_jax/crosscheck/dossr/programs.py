"""What the crosscheck compiles: pure functions of a model, made of production code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax import method
from dossr_jax.diffusion import process
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.vae import posterior


def encode(model: DoSSR, image: Array, noise: Array) -> dict[str, Array]:
    """Everything that comes of an image (b, h, w, 3) in [0, 1], under the entries' names."""
    moments, hint = model.encode(image)
    mean, logvar = posterior(moments)
    condition = method.encode_lr(model, image, noise)
    return {
        "moments": moments,
        "cond_moments": hint,
        "mean": mean,
        "logvar": logvar,
        "std": jnp.exp(0.5 * logvar),
        "x0_hat": condition.x_lr,
        "c_latent": condition.hint,
    }


def network(
    model: DoSSR, x: Array, t: Array, context: Array, hint: Array, strength: Array
) -> dict[str, Any]:
    """The networks' insides and predictions, with and without the ControlNet."""
    skips, mid, temb = model.unet.encoder(x, t, context)
    return {
        "skips": skips,
        "unet_mid": mid,
        "control": model.control(x, hint, t, context),
        "temb": {"unet": temb, "control": model.control.encoder.time(t)},
        "eps": predict(model, x, t, context, hint, strength),
        "eps_nocontrol": model.predict_noise(x, t, context, None),
    }


def predict(
    model: DoSSR, x: Array, t: Array, context: Array, hint: Array, strength: Array
) -> Array:
    """:meth:`DoSSR.predict_noise` with one factor per residual."""
    return model.predict_noise(x, t, context, hint, strength=strength)


def gradients(
    model: DoSSR,
    x: Array,
    t: Array,
    context: Array,
    hint: Array,
    x0: Array,
    alpha: Array,
    sigma: Array,
) -> tuple[tuple[Array, tuple[Array, Array]], nnx.State]:
    """((loss, (its per-sample means, predicted x0)), gradients of the ControlNet's parameters)."""
    graphdef, learn, rest = nnx.split(model, nnx.PathContains("control"), ...)

    def loss_of(learn: nnx.State) -> tuple[Array, tuple[Array, Array]]:
        eps = nnx.merge(graphdef, learn, rest).predict_noise(x, t, context, hint)
        prediction = process.eps_to_x0(x, eps, alpha, sigma)
        each = process.training_loss(x0, prediction, per_sample=True)
        return process.training_loss(x0, prediction), (each, prediction)

    result, gradients = jax.value_and_grad(loss_of, has_aux=True)(learn)
    return result, gradients["control"]
