"""DASR: an SRResNet whose kernels are mixed for every image, by the degradation that it shows."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.models.rrdbnet import UPSCALE, enlarge
from dossr_jax.systems.base import Geometry, KeyTable, Part, Run, System
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.dasr.keys import (
    GENERATOR_PREFIX,
    PREDICTOR_PREFIX,
    dasr_table,
    infer_dasr,
)
from dossr_jax.systems.dasr.networks import DASR


def _restore(model: DASR, lr: Array, run: Run) -> method.Restoration:
    # The weights are those of the whole image: at others the generator is another network.
    _, weights = model.predictor(lr, run.size)

    def generate(lr: Array, weights: Array) -> Array:
        _, height, width, _ = lr.shape
        image = enlarge(model.generator(lr, weights), (UPSCALE * height, UPSCALE * width))
        return jnp.clip(image, 0, 1)

    return method.Restoration.of(run.apply(generate, [lr], [1], UPSCALE, 3, [weights]))


_KEYS = KeyTable(dasr_table, lambda state, variant: infer_dasr(state))
SYSTEM = System(
    name="dasr",
    title="DASR",
    config=DASRConfig,
    module=DASR,
    geometry=lambda config: Geometry(UPSCALE, 1),
    restore=_restore,
    parts=(
        Part("generator (net_g.pth)", GENERATOR_PREFIX, ("body.0.conv1.weight",)),
        Part("predictor (net_p.pth)", PREDICTOR_PREFIX, ("MappingNet.0.weight",)),
    ),
    read=_KEYS.read,
    export=_KEYS.export,
    whole_image=True,
)
