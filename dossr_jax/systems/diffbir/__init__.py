"""DiffBIR: an image is cleaned by a regression, then restored from pure noise under a ControlNet.

Source: arXiv 2308.15070. Its networks, beside the first, are those of DoSSR.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Unpack

import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.config import ProcessConfig, RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import ControlledModel
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.rrdbnet import UPSCALE, RRDBNet, enlarge
from dossr_jax.models.unet import Remat
from dossr_jax.systems import dossr, swinir
from dossr_jax.systems.base import Geometry, Part, Run, System
from dossr_jax.systems.diffbir.config import SPACED, DiffBIRConfig
from dossr_jax.systems.diffbir.keys import (
    CLEANER_PREFIX,
    CONTROL_PREFIX,
    export,
    read,
)
from dossr_jax.systems.rrdb import new_name
from dossr_jax.systems.swinir.networks import SwinIR


class DiffBIR(ControlledModel):
    """Stable Diffusion, its ControlNet, and the network that cleans the image first."""

    config: DiffBIRConfig

    def __init__(
        self, config: DiffBIRConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        super().__init__(config, remat=remat, **options)
        rrdb = isinstance(config.cleaner, RRDBConfig)
        network: Any = RRDBNet if rrdb else SwinIR
        self.cleaner = network(config.cleaner, **options)


def geometry(config: DiffBIRConfig) -> Geometry:
    """Shapes of a model.

    Raises:
      UserError: the model's networks do not fit together.
    """
    unit, align = config.vae.downscale, config.unet.downscale
    cleaner = config.cleaner
    needed = UPSCALE * cleaner.fold if isinstance(cleaner, RRDBConfig) else cleaner.multiple
    if align * unit % needed or unit % UPSCALE:
        raise UserError(
            f"networks that do not fit together: blocks of {align} x {unit} pixels in the "
            f"fourfold image, {needed} in the first network; use another --preprocessor"
        )
    return Geometry(unit, align)


def clean(model: DiffBIR, lr: Array, apply: method.Apply) -> Array:
    """LR images (b, h, w, 3) in [0, 1] -> what the ControlNet is to see, (b, 4h, 4w, 3).

    An RRDBNet enlarges them itself; for SwinIR they are enlarged first, as Pillow does it.
    """
    unit = model.config.vae.downscale
    size = UPSCALE * lr.shape[1], UPSCALE * lr.shape[2]
    if isinstance(model.cleaner, RRDBNet):
        return enlarge(apply(model.cleaner, [lr], [unit // UPSCALE], unit, 3), size)
    return apply(model.cleaner, [jnp.clip(enlarge(lr, size), 0, 1)], [unit], unit, 3)


def restore(model: DiffBIR, lr: Array, run: Run) -> method.Restoration:
    """As published, but for small images, which are not enlarged to 512 pixels first."""
    pre = clean(model, lr, run.apply)
    if not run.diffuse:
        return method.Restoration.of(pre)
    return method.restore_images(model, pre, run.size, **run.sampling())


_NEGATIVE_2 = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
_POSITIVE_21 = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed "
    "photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, "
    "skin pore detailing, hyper sharpness, perfect without deformations."
)
_NEGATIVE_21 = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, "
    "3D render, unreal engine, blurring, dirty, messy, worst quality, low quality, frames, "
    "watermark, signature, jpeg artifacts, deformed, lowres, over-smooth."
)
# What versions differ in that keys do not tell.
VERSIONS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {
        "sampler": dataclasses.replace(SPACED, cfg_scale=4.0),
        "negative_prompt": _NEGATIVE_2,
    },
    "v2.1": {
        "sampler": dataclasses.replace(SPACED, cfg_scale=8.0),
        "process": ProcessConfig(prediction="v", zero_snr=True),
        "prompt": _POSITIVE_21,
        "negative_prompt": _NEGATIVE_21,
    },
}


def _published(version: str) -> DiffBIRConfig:
    cleaner = {"cleaner": RRDBConfig()} if version == "v2" else {}
    return DiffBIRConfig(**cleaner, **VERSIONS[version])


SYSTEM = System(
    name="diffbir",
    title="DiffBIR",
    config=DiffBIRConfig,
    module=DiffBIR,
    geometry=geometry,
    restore=restore,
    table=dossr.solver_table,
    settings=dossr.SETTINGS - {"start", "final_denoise"},
    guided=dossr.SYSTEM.guided,
    parts=(
        Part("Stable Diffusion 2.1", "", ("model.diffusion_model.input_blocks.0.0.weight",)),
        Part(
            "ControlNet (v1_general.pth, v2.pth, DiffBIR_v2.1.pt)",
            CONTROL_PREFIX,
            ("zero_convs.0.0.weight",),
        ),
        Part(
            "first network (general_swinir_v1.ckpt, BSRNet.pth)",
            CLEANER_PREFIX,
            (swinir.MARK, "body.0.rdb1.conv1.weight"),
            new_name,
        ),
    ),
    variants={"v1": r"v1_(general|face)", "v2": r"(^|[/ ])v2\.pth", "v2.1": r"v2\.1\."},
    read=functools.partial(read, versions=VERSIONS),
    export=export,
    pre_restorer="cleaner",
    published={f"DiffBIR {version}": _published(version) for version in VERSIONS},
)
