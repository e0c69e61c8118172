"""DASR: an SRResNet whose kernels are mixed for every image, by the degradation that it shows."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.models.rrdbnet import UPSCALE, enlarge
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.systems.base import Geometry, Model, Part, Run, System
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.dasr.keys import (
    GENERATOR_PREFIX,
    PREDICTOR_PREFIX,
    dasr_table,
    infer_dasr,
)
from dossr_jax.systems.dasr.networks import DASR
from dossr_jax.weights import Lazy


def _restore(model: DASR, lr: Array, run: Run) -> method.Restoration:
    # The weights are those of the whole image: at others the generator is another network.
    _, weights = model.predictor(lr, run.size)

    def generate(lr: Array, weights: Array) -> Array:
        _, height, width, _ = lr.shape
        image = enlarge(model.generator(lr, weights), (UPSCALE * height, UPSCALE * width))
        return jnp.clip(image, 0, 1)

    return method.Restoration.of(run.apply(generate, [lr], [1], UPSCALE, 3, [weights]))


def _read(state: State, variant: str | None = None) -> Model:
    config = infer_dasr(state)
    return Model(config, to_ours(dasr_table(config), state))


def _export(model: Model) -> dict[str, Lazy]:
    return to_torch(dasr_table(model.config), State("the model", model.tensors))


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
    read=_read,
    export=_export,
    whole_image=True,
)
