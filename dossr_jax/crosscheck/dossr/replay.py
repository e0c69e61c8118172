"""Stored runs of a sampler as arguments of the restore program, their noise replayed."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax import method
from dossr_jax.config import SamplerConfig
from dossr_jax.config.sampler import Order
from dossr_jax.crosscheck.folder import Archive
from dossr_jax.diffusion import schedule, solver
from dossr_jax.errors import UserError


class Inputs(Protocol):
    """Stored arrays in the dtype of a comparison: `image` as NHWC, `given` as they lie."""

    archive: Archive
    dtype: Any

    def image(self, name: str) -> Array: ...

    def given(self, name: str) -> Array: ...


class SamplerRun(NamedTuple):
    """A run of the restore program; `cfg` is the guidance scale, None without guidance.

    `source`: the pre-restored image is ours ("own") or the stored one ("stored"), from which stored
    samplers start.
    """

    prefix: str
    order: Order
    steps: int
    cfg: float | None = None
    source: str = "stored"
    fidelity: float = 0.0


def run_of(match: re.Match[str]) -> SamplerRun:
    """The run that an entry's name speaks of."""
    fields = match.groupdict()
    cfg = fields.get("cfg")
    return SamplerRun(
        fields["prefix"],
        cast(Order, int(fields["order"] or 3)),  # the release's default
        int(fields["steps"]),
        float(cfg.replace("p", ".")) if cfg else None,
    )


class StoredImage(nnx.Module):
    """Stands in for the pre-restorer: a stored image (b, 4h, 4w, 3), whatever the LR image."""

    def __init__(self, image: Array):
        self.image = nnx.Param(image)

    def __call__(self, lr: Array) -> Array:
        return self.image[...]


def arguments(
    inputs: Inputs, run: SamplerRun, levels: schedule.Schedule, *, rows: int
) -> dict[str, Any]:
    """Noise, solver table and controls of a run, the table padded to `rows`.

    Raises:
      UserError: less noise is stored than the run has steps.
    """
    noise = inputs.image(f"{run.prefix}noise_steps")
    if len(noise) < run.steps:
        raise UserError(
            f"{inputs.archive.where}: {run.prefix}noise_steps has {len(noise)} draws, a run of "
            f"{run.steps} steps needs as many"
        )
    sampler = SamplerConfig(
        steps=run.steps, order=run.order, final_denoise=run.fidelity == 1, fidelity=run.fidelity
    )
    table = solver.cast(solver.make_table(levels, sampler), inputs.dtype)
    return {
        "noise": method.StoredNoise(
            inputs.image(f"{run.prefix}noise_posterior"),
            inputs.image(f"{run.prefix}noise_init"),
            jnp.resize(noise, (rows, *noise.shape[1:]))[:, None],
        ),
        "table": solver.pad_table(table, rows),
        "controls": method.Controls(
            context=inputs.given("context")[0],
            negative_context=inputs.given("context_neg")[0],
            cfg_scale=np.asarray(run.cfg or 1, inputs.dtype),
            strength=np.ones((), inputs.dtype),
            fidelity=np.asarray(run.fidelity, inputs.dtype),
        ),
    }
