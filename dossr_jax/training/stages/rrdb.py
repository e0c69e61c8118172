"""Pre-restorer: an RRDBNet from LR to HR by L1, as Real-ESRNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field, NonNegativeInt

from dossr_jax import weights
from dossr_jax.config import ConfigError, DoSSRConfig, configuration
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.systems.rrdb import read_rrdb
from dossr_jax.training.stages.base import (
    Inputs,
    Metrics,
    Read,
    Stage,
    mean_of,
    pre_restore_crops,
    psnr,
)

_PREFIX = "rrdb."


@configuration
class PreRestorerStage(Stage):
    """What the stages that train the pre-restorer share: how it starts."""

    start: str = Field(
        default="",
        description="another network to begin with: realesrgan or any file of an RRDBNet",
    )
    blocks: tuple[NonNegativeInt, ...] = Field(
        default=(), description="numbers, from 0, of those of its blocks that are kept; none: all"
    )

    def learns(self, name: str) -> bool:
        return name.startswith(_PREFIX)

    def adapt(
        self, config: DoSSRConfig, found: DoSSRConfig, read: Read
    ) -> tuple[DoSSRConfig, Read]:
        """With the pre-restorer that `start` names.

        Raises:
          UserError: no such network, or another shape than the configuration's.
        """
        if not self.start:
            return found, read
        start = self.read_start(config)
        return found, lambda name: (start if name.startswith(_PREFIX) else read)(name)

    def read_start(self, config: DoSSRConfig) -> Read:
        """The kept blocks of the network that `start` names, under the model's names."""
        own, tensors = read_rrdb(self.start)
        kept = self.blocks or tuple(range(own.num_blocks))
        fits = dataclasses.replace(config.rrdb, num_blocks=own.num_blocks) == own
        if not fits or len(kept) != config.rrdb.num_blocks or max(kept) >= own.num_blocks:
            raise UserError(
                f"stage.start {self.start}: blocks {list(kept)} of its {own.num_blocks} do not "
                f"make the pre-restorer of the configuration, {config.rrdb}; change model.rrdb or "
                "stage.blocks"
            )

        def read(name: str) -> np.ndarray:
            parts = name.removeprefix(_PREFIX).split(".")
            if parts[0] == "body":
                parts[1] = str(kept[int(parts[1])])
            return tensors[".".join(parts)].load()

        return read


@configuration
class RRDBStage(PreRestorerStage):
    """The pre-restorer learns by L1.

    Between a GAN and its fine-tuning by L1 lie networks that trade texture for accuracy (network
    interpolation, ESRGAN, arXiv 1809.00219, section 3.4).
    """

    name: Literal["rrdb"] = "rrdb"
    start_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the start's weights in the exported model, beside the learnt ones",
    )

    def __post_init__(self) -> None:
        if self.start_share and not self.start:
            raise ConfigError("stage.start_share: needs stage.start")

    def finalize(self, model: DoSSR, crops: Callable[[], np.ndarray]) -> None:
        """The weights between the start's and the learnt ones that `start_share` asks for."""
        if not self.start_share:
            return
        start = self.read_start(model.config)
        for name, param in weights.names_and_params(model.rrdb):
            learnt = param[...]
            between = self.start_share * start(_PREFIX + name) + (1 - self.start_share) * learnt
            param[...] = between.astype(learnt.dtype)

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Mean |HR - RRDB(LR)|."""
        out = pre_restore_crops(model, inputs._replace(pre=None))
        loss = mean_of(jnp.abs(inputs.hr - out.astype(jnp.float32)))
        return loss, {"psnr": psnr(out, inputs.hr)}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        return inputs.lr, pre_restore_crops(model, inputs._replace(pre=None))
