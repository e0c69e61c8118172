"""DoSSR itself, and Stable Diffusion 2.1 as what its training starts from."""

from __future__ import annotations

import dataclasses

from jax import Array

from dossr_jax import method
from dossr_jax.config import DoSSRConfig, LatentConfig, SamplerConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import SolverTable, make_table
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.systems.base import Geometry, Part, Run, System
from dossr_jax.systems.dossr.release import export_release

SETTINGS = frozenset(field.name for field in dataclasses.fields(SamplerConfig)) | {
    "seed",
    "prompt",
    "negative_prompt",
    "strength",
    "diffuse",
}


def geometry(config: DoSSRConfig) -> Geometry:
    """Shapes of a model.

    Raises:
      UserError: the model's networks do not fit together.
    """
    unit, align, fold = config.vae.downscale, config.unet.downscale, config.rrdb.fold
    # Canvases and tiles are multiples of `align` units, and of the pixels in them.
    if unit % UPSCALE or align * unit // UPSCALE % fold:
        raise UserError(
            f"networks that do not fit together: blocks of {align} x {unit} pixels in the "
            f"fourfold image, {fold} at once in the pre-restorer; use another pre-restorer"
        )
    return Geometry(unit, align)


def restore(model: DoSSR, lr: Array, run: Run) -> method.Restoration:
    """As published: see dossr_jax.method."""
    unit = model.config.vae.downscale
    pre = run.apply(model.pre_restore, [lr], [unit // UPSCALE], unit, 3)
    if not run.diffuse:
        return method.Restoration.of(pre)
    return method.restore_images(model, pre, run.size, **run.sampling())


def solver_table(config: LatentConfig, sampler: SamplerConfig) -> SolverTable:
    """The solver of a model on its schedule."""
    return make_table(make_schedule(config.process), sampler)


SYSTEM = System(
    name="dossr",
    title="DoSSR",
    config=DoSSRConfig,
    module=DoSSR,
    geometry=geometry,
    restore=restore,
    table=solver_table,
    settings=SETTINGS,
    guided=lambda settings: settings.sampler.cfg_scale != 1.0,
    parts=(Part("checkpoint", "", ("control_model.input_blocks.0.0.weight",)),),
    export=export_release,
    pre_restorer="rrdb",
)
