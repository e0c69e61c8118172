"""ResShift and SinSR: a short chain from the low-resolution image, in a latent of their own."""

from __future__ import annotations

from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dossr_jax import method
from dossr_jax.diffusion import solver
from dossr_jax.image import color_fix, enlarge_as_torch
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.models.unet import Remat
from dossr_jax.pytorch.state import State
from dossr_jax.systems.base import Geometry, KeyTable, Part, Run, System
from dossr_jax.systems.resshift.config import ResShiftConfig, published_sampler
from dossr_jax.systems.resshift.keys import (
    BUFFERS,
    PROCESSES,
    UNET_PREFIX,
    VQ_PREFIX,
    infer_resshift,
    resshift_table,
)
from dossr_jax.systems.resshift.networks import VQ, SwinUNet
from dossr_jax.systems.resshift.process import solver_table


class ResShift(nnx.Module):
    """UNet and autoencoder."""

    def __init__(
        self, config: ResShiftConfig, *, remat: Remat = "none", **options: Unpack[LayerOptions]
    ):
        self.config = config
        self.unet = SwinUNet(config.unet, remat=remat, **options)
        self.vq = VQ(config.vq, **options)


def geometry(config: ResShiftConfig) -> Geometry:
    """The latent has the size of the LR image."""
    return Geometry(config.vq.downscale, config.unet.multiple)


def encode_lr(model: ResShift, lr: Array, *, apply: method.Apply = method.whole) -> Any:
    """The enlarged images (b, 4h, 4w, 3) in about [-1, 1], and what LR ones are to the chain.

    Args:
      lr: (b, h, w, 3) in [0, 1].
    """
    lq = 2 * lr - 1
    enlarged = enlarge_as_torch(lq, UPSCALE)
    z_y = apply(model.vq.encode, [enlarged], [UPSCALE], 1, model.config.vq.z_channels)
    return enlarged, method.Condition(x_lr=z_y, hint=lq)


def predict(model: ResShift, x: Array, t: Array, sigma: Array, lq: Array) -> Array:
    """The network's x0 for x (b, h, w, z) at steps t (b,) or (1,); sigma: of the noise in x."""
    return model.unet(x / jnp.sqrt(sigma**2 + 1), t, lq)


def restore(model: ResShift, lr: Array, run: Run) -> method.Restoration:
    """As published, but for the shape of tiles; without a colour fix unless one is asked for."""
    z = model.config.vq.z_channels
    shape = lr.shape[1], lr.shape[2], z
    enlarged, condition = encode_lr(model, lr, apply=run.apply)
    assert run.noise is not None and run.table is not None

    def denoise(x: Array, point: solver.Point) -> Array:
        def of_tiles(x: Array, lq: Array) -> Array:
            return predict(model, x, point.t[None], point.sigma, lq)

        return run.apply(of_tiles, [x, condition.hint], [1, 1], 1, z)

    latents, path = method.run_solver(
        denoise,
        condition,
        run.noise.initial(shape)[1],
        shape,
        table=run.table,
        noise=run.noise,
        keep_path=run.keep_path,
        gradient_steps=run.gradient_steps,
    )
    decoded = (run.apply(model.vq.decode, [latents], [1], UPSCALE, 3) + 1) / 2
    pre = jnp.clip((enlarged + 1) / 2, 0, 1)
    result = color_fix(run.fix, decoded, pre, UPSCALE * run.size)
    return method.Restoration(pre, decoded, result, condition, latents, path)


def _steps(variant: str) -> int:
    return 1 if variant == "sinsr" else PROCESSES[variant].steps


def _published(variant: str) -> ResShiftConfig:
    return ResShiftConfig(process=PROCESSES[variant], sampler=published_sampler(_steps(variant)))


def _infer(state: State, variant: str | None) -> ResShiftConfig:
    assert variant is not None
    return infer_resshift(state, PROCESSES[variant], _steps(variant))


_KEYS = KeyTable(resshift_table, _infer, BUFFERS)
SYSTEM = System(
    name="resshift",
    title="ResShift",
    config=ResShiftConfig,
    module=ResShift,
    geometry=geometry,
    restore=restore,
    table=solver_table,
    settings=frozenset({"seed", "steps", "order", "solver", "color_fix"}),
    parts=(
        Part(
            "UNet (resshift_realsrx4_*.pth, SinSR_*.pth)",
            UNET_PREFIX,
            ("input_blocks.1.1.blocks.0.attn.relative_position_bias_table",),
        ),
        Part("autoencoder (autoencoder_vq_f4.pth)", VQ_PREFIX, ("quantize.embedding.weight",)),
    ),
    variants={"s15": r"_s15_", "s4": r"_s4(_|\.)", "sinsr": r"(?i)sinsr"},
    read=_KEYS.read,
    export=_KEYS.export,
    published={
        "ResShift, 4 steps": _published("s4"),
        "ResShift, 15 steps": _published("s15"),
        "SinSR": _published("sinsr"),
    },
    licence="ResShift's code and weights: S-Lab License 1.0, for non-commercial use only; "
    "SinSR's: CC BY-NC-SA 4.0",
)
