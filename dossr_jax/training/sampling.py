"""Restoration of training samples as dossr_jax.restore has it, whole crops in one program."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from dossr_jax.diffusion import process, solver
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.image import color_fix, detail_fix
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import enlarge
from dossr_jax.training.samples import Draw, Inputs, draw_normal, fold


class Restored(NamedTuple):
    """Images (b, H, W, 3), float32: pre-restored, decoded, and after the colour fix."""

    pre: Array
    decoded: Array
    fixed: Array


def pre_restore(model: DoSSR, lr: Array, size: tuple[int, int]) -> Array:
    """The pre-restorer's output, not clipped, enlarged to (b, *size, 3) where it is smaller."""
    return enlarge(model.rrdb(lr), size)


def decode_images(model: DoSSR, latents: Array, x_lr: Array, pre: Array) -> Array:
    """Image (b, H, W, 3) of scaled latents, as the model's sampler has it before low bands.

    With the colour fix "residual" that is the pre-restored image `pre`, in [0, 1], and what the
    latents change in the decoding of its own, x_lr, as dossr_jax.restore has it.
    """
    image = model.decode(latents)
    if model.config.sampler.color_fix == "residual":
        image = pre + image - model.decode(x_lr)
    return image


def sample_images(model: DoSSR, inputs: Inputs) -> Restored:
    """What the model's own sampler, prompt and colour fix make of the LR images, not refined."""
    sampler = model.config.sampler
    pre = jnp.clip(pre_restore(model, inputs.lr, inputs.hr.shape[1:3]).astype(jnp.float32), 0, 1)
    moments, hint = (m.astype(jnp.float32) for m in model.encode(pre))
    hint = model.latents(hint)
    shape = hint.shape[1:]
    x_lr = model.latents(moments, draw_normal(inputs.keys, Draw.SAMPLED_POSTERIOR, shape))
    context = jnp.broadcast_to(model.context[...], (len(x_lr), *model.context.shape))
    step_keys = fold(inputs.keys, Draw.SAMPLED_STEP)

    def denoise(x: Array, point: solver.Point) -> Array:
        t = jnp.broadcast_to(point.t, x.shape[:1])
        eps = model.predict_noise(x, t, context, hint).astype(jnp.float32)
        levels = point.alpha, point.sigma, point.eta
        x0 = process.data_prediction(x, eps, x_lr, *levels, model.config.process.lr_skip)
        return process.toward_lr(x0, x_lr, sampler.fidelity)

    table = solver.make_table(make_schedule(model.config.process), sampler)
    start = draw_normal(inputs.keys, Draw.SAMPLED_START, shape)
    x0 = solver.sample(denoise, x_lr, table, start, lambda i: draw_normal(step_keys, i, shape))
    image = decode_images(model, x0, x_lr, pre).astype(jnp.float32)
    return Restored(pre, image, color_fix(sampler.color_fix, image, pre, _sizes(image)))


def refine_images(model: DoSSR, lr: Array, restored: Restored, detail: float) -> Array:
    """Restored images (b, H, W, 3) after the model's refiner, of which fine bands alone are taken.

    lr: (b, H/4, W/4, 3) in [0, 1]. detail: as Settings has it.
    """
    pre, _, fixed = restored
    image = model.refiner(lr, pre, fixed, detail).astype(jnp.float32)
    return detail_fix(image, pre, _sizes(image))


def _sizes(image: Array) -> Array:
    """Sizes (b, 2) of images that fill their canvas."""
    return jnp.broadcast_to(jnp.int32(image.shape[1:3]), (len(image), 2))
