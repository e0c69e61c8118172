"""Configuration of DASR. Defaults are the sizes of the published x4 networks."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import ModelConfig, configuration
from dossr_jax.config.model import Count


@configuration
class DASRConfig(ModelConfig):
    """Generator (num_features, num_blocks, upscale) and predictor of its mixing weights.

    `num_experts` kernels per convolution are mixed. The predictor is `predictor_features` wide and
    describes the degradation by `num_params` numbers, from which `hidden` and then the weights
    follow.
    """

    system: Literal["dasr"] = "dasr"
    num_features: Count = 64
    num_blocks: Count = 16
    num_experts: Count = 5
    upscale: Literal[2, 3, 4] = 4
    predictor_features: Count = 64
    num_params: Count = 33
    hidden: Count = 15
