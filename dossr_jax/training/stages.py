"""What each stage learns from: its random draws and its loss, one value a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax import metrics
from dossr_jax.config import TrainConfig
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import Schedule, make_schedule
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.vae import posterior, posterior_sample
from dossr_jax.training.inputs import Inputs, fold, normal
from dossr_jax.training.sampling import decoded, pre_restore, sampled

Metrics = dict[str, Array]

_SSIM_SCALES = 3  # of SSIM as a loss
# What a refiner learns at: the mean of restored and pre-restored image is closer to the truth than
# either. How much detail a picture gets is for its sampler to say.
_DETAIL = 0.5
_SHARPEN_DEVIATION = 2.0  # of the unsharp mask, in pixels
# Purposes of random draws, apart from those of the inputs and of sampling.
_TIME, _NOISE, _PROMPT, _POSTERIOR = range(1, 5)


# --- losses -----------------------------------------------------------------------------------


def mean_of(x: Array) -> Array:
    """Mean over all but the first axis, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim)))


def coarse_error(error: Array, weights: Sequence[float]) -> Array:
    """Weighted sum (b,) of mean |error| of (b, h, w, c) on coarser grids.

    Weight k is for the error averaged over squares of 2^(k+1). A median, which L1 asks for, is off
    in brightness where a distribution is skewed; and what is off on a large scale weighs little
    against detail that nothing could predict.
    """
    total = jnp.zeros(error.shape[0])
    for weight in weights:
        error = metrics.halve(error)
        total += weight * mean_of(jnp.abs(error))
    return total


def image_error(image: Array, hr: Array, config: TrainConfig) -> Array:
    """L1 and 1 - SSIM, as weighted, (b,) of decoded images (b, h, w, 3) in [0, 1]."""
    image = image.astype(jnp.float32)
    total = config.image_weight * mean_of(jnp.abs(hr - image))
    if config.ssim_weight:
        total += config.ssim_weight * _dissimilarity(image, hr)
    return total


def _dissimilarity(image: Array, hr: Array) -> Array:
    """1 - SSIM (b,) of images in [0, 1]."""
    return 1 - metrics.multiscale_ssim(image, hr, data_range=1.0, scales=_SSIM_SCALES)


def _psnr(a: Array, b: Array) -> Array:
    """PSNR in dB (b,) of images in [0, 1]; `a` is clipped to it."""
    return -10 * jnp.log10(mean_of((jnp.clip(a.astype(jnp.float32), 0, 1) - b) ** 2) + 1e-10)


def rrdb_loss(
    model: DoSSR, inputs: Inputs, t: Array | None, config: TrainConfig
) -> tuple[Array, Metrics]:
    """Mean |HR - RRDB(LR)|, and with `coarse_weights` that of coarser grids."""
    del t
    out = pre_restore(model, inputs.lr, inputs.hr.shape[1:3])
    error = inputs.hr - out.astype(jnp.float32)
    loss = mean_of(jnp.abs(error)) + coarse_error(error, config.coarse_weights)
    return loss, {"psnr": _psnr(out, inputs.hr)}


def vae_loss(
    model: DoSSR, inputs: Inputs, t: Array | None, config: TrainConfig
) -> tuple[Array, Metrics]:
    """L1 of the image and of its differences, plus the posterior's KL to a unit normal.

    The differences weigh edges and texture, a few dark pixels among the many of flat areas.
    """
    del t
    image = 2 * inputs.hr - 1
    moments = model.vae.encode(image).astype(jnp.float32)
    mean, logvar = posterior(moments)
    out = model.vae.decode(
        posterior_sample(moments, normal(inputs.keys, _POSTERIOR, mean.shape[1:]))
    )
    error = image - out.astype(jnp.float32)
    edges = sum(mean_of(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
    kl = 0.5 * mean_of(mean**2 + jnp.exp(logvar) - 1 - logvar)
    loss = mean_of(jnp.abs(error)) + 0.5 * edges + config.kl_weight * kl
    return loss, {"psnr": _psnr((out + 1) / 2, inputs.hr), "kl": kl}


def draw_times(keys: Array, config: TrainConfig) -> Array:
    """Times (b,) int32 that a latent stage trains at."""
    schedule = make_schedule(config.model.process)
    times = len(schedule.alpha) if config.stage == "prior" or config.times == "all" else schedule.t1
    low = times - 1 if config.times == "start" and config.stage == "dossr" else 0
    keys = fold(keys, _TIME)
    t = jax.vmap(lambda key: jax.random.randint(key, (), low, times))(keys)
    if not config.start_share:
        return t
    starts = jax.vmap(lambda key: jax.random.bernoulli(key, config.start_share))(fold(keys, 0))
    return jnp.where(starts, schedule.t1 - 1, t)


def _levels(schedule: Schedule, t: Array) -> tuple[Array, Array, Array]:
    """alpha, sigma, eta at times t (b,), each (b, 1, 1, 1)."""
    tables = schedule.alpha, schedule.sigma, schedule.eta
    return tuple(process.gather(jnp.asarray(table, jnp.float32), t) for table in tables)


def _contexts(model: DoSSR, keys: Array, config: TrainConfig) -> Array:
    """Prompt embedding (b, m, d) of every sample."""
    empty = jnp.broadcast_to(model.negative_context[...], (len(keys), *model.context.shape))
    if config.prompts == "empty":
        return empty
    stored = jax.vmap(jax.random.bernoulli)(fold(keys, _PROMPT))
    return jnp.where(stored[:, None, None], model.context[...][None], empty)


def _latents(model: DoSSR, inputs: Inputs) -> Array:
    """Scaled posterior samples, float32, of the HR images."""
    moments = model.vae.encode(2 * inputs.hr - 1).astype(jnp.float32)
    z = model.config.vae.z_channels
    return model.latents(moments, normal(inputs.keys, _POSTERIOR, (*moments.shape[1:3], z)))


def diffusion_latent_loss(
    model: DoSSR, x0: Array, hint: Array | None, context: Array, t: Array, eps: Array
) -> Array:
    """Plain diffusion (DDPM, arXiv 2006.11239): mean squared error (b,) of the predicted noise.

    Args are those of :func:`shifted_prediction`; without a hint it is the prior's.
    """
    alpha, sigma, eta = _levels(make_schedule(model.config.process).no_shift(), t)
    x = process.q_sample(x0, x0, alpha, sigma, eta, eps)
    return mean_of((model.predict_noise(x, t, context, hint).astype(jnp.float32) - eps) ** 2)


def shifted_prediction(
    model: DoSSR, x0: Array, x_lr: Array, hint: Array, context: Array, t: Array, eps: Array
) -> Array:
    """Data prediction D on the shifted process, in float32 (DoSSR, arXiv 2409.17778).

    Args:
      x0, x_lr: scaled latents (b, h, w, z) of the HR and of the pre-restored image.
      hint: what the ControlNet sees: x_lr but for a hint encoder of its own.
      context: (b, m, d). t: (b,) integers. eps: standard normal, as x0.
    """
    alpha, sigma, eta = _levels(make_schedule(model.config.process), t)
    x = process.q_sample(x0, x_lr, alpha, sigma, eta, eps)
    out = model.predict_noise(x, t, context, hint).astype(jnp.float32)
    skip = model.config.process.lr_skip
    return process.data_prediction(x, out, x_lr, alpha, sigma, eta, skip)


def prior_loss(
    model: DoSSR, inputs: Inputs, t: Array | None, config: TrainConfig
) -> tuple[Array, Metrics]:
    """:func:`diffusion_latent_loss` of HR images."""
    x0 = _latents(model, inputs)
    t = draw_times(inputs.keys, config) if t is None else t
    eps, context = normal(inputs.keys, _NOISE, x0.shape[1:]), _contexts(model, inputs.keys, config)
    return diffusion_latent_loss(model, x0, None, context, t, eps), {}


def dossr_loss(
    model: DoSSR, inputs: Inputs, t: Array | None, config: TrainConfig
) -> tuple[Array, Metrics]:
    """Mean |x0 - D| on the shifted process, of HR images and their pre-restored LR partners.

    Beyond what is published, `coarse_weights` weigh the error of coarser grids, `image_weight` and
    `ssim_weight` the L1 error and 1 - SSIM of the decoded prediction. With start "noise" it is
    :func:`diffusion_latent_loss`, with the same hint.

    As published, x0 is a sample of its posterior, x_lr the mode, and the pre-restored image is not
    clipped.
    """
    x0 = _latents(model, inputs)
    pre = pre_restore(model, inputs.lr, inputs.hr.shape[1:3])
    moments, hint = model.encode(pre)
    x_lr, hint = (model.latents(m.astype(jnp.float32)) for m in (moments, hint))
    t = draw_times(inputs.keys, config) if t is None else t
    eps, context = normal(inputs.keys, _NOISE, x0.shape[1:]), _contexts(model, inputs.keys, config)
    if config.start == "noise":
        loss = diffusion_latent_loss(model, x0, hint, context, t, eps)
    else:
        prediction = shifted_prediction(model, x0, x_lr, hint, context, t, eps)
        loss = process.training_loss(x0, prediction, per_sample=True)
        loss += coarse_error(x0 - prediction, config.coarse_weights)
        if config.has_image_term:
            image = decoded(model, prediction, x_lr, jnp.clip(pre, 0, 1))
            loss += image_error(image, inputs.hr, config)
    return loss, {"lr_error": mean_of(jnp.abs(x0 - x_lr))}


def sharpened(image: Array, amount: float) -> Array:
    """Images (b, h, w, c) with `amount` times what a Gaussian blur of deviation 2 px takes off."""

    def blur(side: int) -> np.ndarray:
        """Matrix (side, side) that blurs a line of pixels, as if there were none beyond."""
        distance = np.subtract.outer(np.arange(side), np.arange(side))
        weights = np.exp(-0.5 * (distance / _SHARPEN_DEVIATION) ** 2)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    rows, cols = map(blur, image.shape[1:3])
    blurred = jnp.einsum("ih,bhwc,jw->bijc", rows, image, cols)
    return image + amount * (image - blurred)


def refiner_loss(
    model: DoSSR, inputs: Inputs, t: Array | None, config: TrainConfig
) -> tuple[Array, Metrics]:
    """Mean |HR - refined| of what the model's own sampler makes, colour fix included.

    `coarse_weights` add the error of coarser grids, `ssim_weight` 1 - SSIM; HR is sharpened as
    `sharpen` says. All bands count here, though restoration takes the fine ones alone: a network
    that is not asked for the coarse ones spends them on the fine (docs/mini.md).
    """
    del t
    hr = sharpened(inputs.hr, config.sharpen) if config.sharpen else inputs.hr
    pre, _, fixed = jax.lax.stop_gradient(sampled(model, inputs))
    out = model.refiner(inputs.lr, pre, fixed, _DETAIL).astype(jnp.float32)
    error = hr - out
    loss = mean_of(jnp.abs(error)) + coarse_error(error, config.coarse_weights)
    if config.ssim_weight:
        loss += config.ssim_weight * _dissimilarity(out, hr)
    return loss, {"psnr": _psnr(out, inputs.hr), "unrefined_psnr": _psnr(fixed, inputs.hr)}


LossFn = Callable[[DoSSR, Inputs, Array | None, TrainConfig], tuple[Array, Metrics]]
STAGES: dict[str, LossFn] = {
    "rrdb": rrdb_loss,
    "vae": vae_loss,
    "prior": prior_loss,
    "dossr": dossr_loss,
    "refiner": refiner_loss,
}
