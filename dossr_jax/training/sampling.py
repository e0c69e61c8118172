"""Restoration of training samples: dossr_jax.method on whole crops, by the model's own sampler."""

from __future__ import annotations

import jax.numpy as jnp

from dossr_jax import method
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import make_table
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.training.samples import Inputs, fold


def sample_images(model: DoSSR, inputs: Inputs, *, refine: bool) -> method.Restoration:
    """What the model's sampler, prompt and colour fix make of the LR images, in float32.

    refine: run the refiner of a model that has one.
    """
    sampler = model.config.sampler
    height, width = inputs.hr.shape[1:3]
    pre = model.pre_restore(inputs.lr, (height, width)).astype(jnp.float32)
    size = jnp.array([height // UPSCALE, width // UPSCALE], jnp.int32)
    return method.restore_images(
        model,
        inputs.lr,
        pre,
        jnp.broadcast_to(size, (len(pre), 2)),
        table=make_table(make_schedule(model.config.process), sampler),
        controls=method.Controls(
            context=model.context[...],
            negative_context=model.negative_context[...],
            cfg_scale=1.0,
            strength=1.0,
            fidelity=sampler.fidelity,
            detail=sampler.detail,
        ),
        noise=method.KeyNoise(fold(inputs.keys, Draw.SAMPLING)),
        fix=sampler.color_fix,
        refine=refine,
    )
