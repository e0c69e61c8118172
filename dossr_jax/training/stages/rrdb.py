"""Pre-restorer: an RRDBNet from LR to HR by L1, as Real-ESRNet."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array

from dossr_jax.config import TrainConfig, configuration
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training.stages.additions import CoarseWeights, check_crop, coarse_error
from dossr_jax.training.stages.base import Inputs, Metrics, Stage, mean_of, pre_restore_crops, psnr


@configuration
class RRDBStage(Stage):
    """`coarse_weights` add the error of coarser grids (see :func:`coarse_error`)."""

    name: Literal["rrdb"] = "rrdb"
    coarse_weights: CoarseWeights = ()

    def check(self, config: TrainConfig) -> None:
        check_crop(config.data.crop, self.coarse_weights)

    def learns(self, name: str) -> bool:
        return name.startswith("rrdb.")

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Mean |HR - RRDB(LR)|."""
        out = pre_restore_crops(model, inputs)
        error = inputs.hr - out.astype(jnp.float32)
        loss = mean_of(jnp.abs(error)) + coarse_error(error, self.coarse_weights)
        return loss, {"psnr": psnr(out, inputs.hr)}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        return inputs.lr, pre_restore_crops(model, inputs)
