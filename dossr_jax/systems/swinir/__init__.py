"""SwinIR: window attention in residual groups, one pass."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.errors import UserError
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.systems.base import Geometry, KeyTable, Part, Run, System
from dossr_jax.systems.swinir.config import SwinIRConfig
from dossr_jax.systems.swinir.keys import BUFFERS, infer_swinir, swinir_table
from dossr_jax.systems.swinir.networks import SwinIR

MARK = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"


def _geometry(config: SwinIRConfig) -> Geometry:
    if config.upscale != UPSCALE:
        raise UserError(
            "a SwinIR whose result has the size of its input: DiffBIR's first stage; give it with "
            "DiffBIR's other files"
        )
    return Geometry(UPSCALE * config.window, 1)


def _restore(model: SwinIR, lr: Array, run: Run) -> method.Restoration:
    def enlarge(lr: Array) -> Array:
        return jnp.clip(model(lr), 0, 1)

    window = model.config.window
    return method.Restoration.of(run.apply(enlarge, [lr], [window], UPSCALE * window, 3))


_KEYS = KeyTable(swinir_table, lambda state, variant: infer_swinir(state), BUFFERS)
SYSTEM = System(
    name="swinir",
    title="SwinIR",
    config=SwinIRConfig,
    module=SwinIR,
    geometry=_geometry,
    restore=_restore,
    parts=(Part("network", "", (MARK,)),),
    read=_KEYS.read,
    export=_KEYS.export,
    single=True,
    published={
        "SwinIR-M": SwinIRConfig(),
        "SwinIR-L": SwinIRConfig(embed_dim=240, depths=(6,) * 9, heads=8, residual="3conv"),
    },
)
