"""OSEDiff and PiSA-SR: Stable Diffusion 2.1 with adapters, evaluated once.

The enlarged LR image is encoded, one evaluation of the UNet says what is to be taken out of the
latent, and the rest is decoded. Sources: OSEDiff, arXiv 2406.08177; PiSA-SR, arXiv 2412.03017.

PiSA-SR runs with the empty prompt, as published. OSEDiff's published prompts are tags that another
network, RAM, finds in the image; it is not here, so that the empty prompt is the default there,
too, and tags can be given as a prompt where the model keeps its text tower.
"""

from __future__ import annotations

from jax import Array

from dossr_jax import method
from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import Point, SolverTable, one_step_table
from dossr_jax.errors import UserError
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.systems.base import Geometry, Part, Run, System
from dossr_jax.systems.one_step.config import OneStepConfig, OSEDiffConfig, PiSASRConfig
from dossr_jax.systems.one_step.keys import (
    OSEDIFF_MARK,
    PISASR_MARK,
    SD_MARK,
    export_osediff,
    export_pisasr,
    read_osediff,
    read_pisasr,
)
from dossr_jax.systems.one_step.networks import OSEDiff, PiSASR

_SETTINGS = frozenset({"seed", "prompt", "color_fix"})
_SD = Part("Stable Diffusion 2.1", "", (SD_MARK,))
# The time that PiSA-SR's adapters are trained at.
_PISASR_TIME = 1


def _geometry(config: OneStepConfig) -> Geometry:
    unit, align = config.vae.downscale, config.unet.downscale
    if unit % UPSCALE:
        raise UserError(
            f"a VAE with {unit} pixels per latent position does not fit images that are enlarged "
            f"{UPSCALE} times; it must be a multiple"
        )
    return Geometry(unit, align)


def _osediff_table(config: OSEDiffConfig, sampler: SamplerConfig) -> SolverTable:
    """The enlarged image is taken for the noisiest latent: x0 = (x - sigma eps) / alpha."""
    schedule = make_schedule(config.process)
    last = config.process.timesteps - 1
    return one_step_table(last, schedule.alpha[last], schedule.sigma[last])


def _restore_osediff(model: OSEDiff, lr: Array, run: Run) -> method.Restoration:
    def predictor(
        model: OSEDiff, controls: method.Controls, guided: bool, times: Array
    ) -> method.Predict:
        return lambda x, point, hint: model.predict(x, point.t[None], controls.context)

    pre, merged = model.pre_restore(lr), model.merged()
    return method.restore_images(merged, pre, run.size, predictor=predictor, **run.sampling())


def _pisasr_table(config: PiSASRConfig, sampler: SamplerConfig) -> SolverTable:
    """The network predicts the residual itself: x0 = x - output."""
    return one_step_table(_PISASR_TIME, 1, 1)


def _restore_pisasr(model: PiSASR, lr: Array, run: Run) -> method.Restoration:
    pixel, both = model.merged()

    def predictor(
        model: PiSASR, controls: method.Controls, guided: bool, times: Array
    ) -> method.Predict:
        """`guided` by the scales of what the pixel adapters predict and the others change in it."""

        def predict(x: Array, point: Point, hint: Array) -> Array:
            t = point.t[None]
            output = model.predict(x, t, controls.context)
            if not guided:
                return output
            base = pixel.predict(x, t, controls.context)
            return controls.pixel_scale * base + controls.semantic_scale * (output - base)

        return predict

    pre = model.pre_restore(lr)
    return method.restore_images(both, pre, run.size, predictor=predictor, **run.sampling())


OSEDIFF = System(
    name="osediff",
    title="OSEDiff",
    config=OSEDiffConfig,
    module=OSEDiff,
    geometry=_geometry,
    restore=_restore_osediff,
    table=_osediff_table,
    settings=_SETTINGS,
    parts=(_SD, Part("adapters (osediff.pkl)", "", (OSEDIFF_MARK,))),
    read=read_osediff,
    export=export_osediff,
)
PISASR = System(
    name="pisasr",
    title="PiSA-SR",
    config=PiSASRConfig,
    module=PiSASR,
    geometry=_geometry,
    restore=_restore_pisasr,
    table=_pisasr_table,
    settings=_SETTINGS | {"pixel_scale", "semantic_scale"},
    guided=lambda settings: (settings.pixel_scale, settings.semantic_scale) != (1.0, 1.0),
    parts=(_SD, Part("adapters (pisa_sr.pkl)", "", (PISASR_MARK,))),
    read=read_pisasr,
    export=export_pisasr,
)
