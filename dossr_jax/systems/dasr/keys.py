"""DASR's checkpoints: the table of their keys, and configurations from keys or from YAML."""

from __future__ import annotations

import math
from typing import Any

from dossr_jax.pytorch.infer import Settings, config_errors, count
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import Row, with_prefix
from dossr_jax.pytorch.tables.rows import conv, linear
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.dasr.networks import PREDICTOR_STRIDES, shuffles

# The two networks come as two files, net_g and net_p, whose keys have no prefix.
GENERATOR_PREFIX = "generator."
PREDICTOR_PREFIX = "predictor."
_IMAGE_CHANNELS = 3


def _expert_conv(torch: str, ours: str, c_in: int, c_out: int, experts: int) -> list[Row]:
    shape = (experts, c_out, c_in, 3, 3)
    return [
        Row(f"{torch}.weight", f"{ours}.kernel", "expert_conv", shape),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", shape[:2]),
    ]


def generator_table(config: DASRConfig) -> list[Row]:
    """List the rows of a generator, without prefixes."""
    features, experts = config.num_features, config.num_experts
    rows = _expert_conv("conv_first", "conv_first", _IMAGE_CHANNELS, features, experts)
    for i in range(config.num_blocks):
        for name in (f"body.{i}.conv1", f"body.{i}.conv2"):
            rows += _expert_conv(name, name, features, features, experts)
    for i, factor in enumerate(shuffles(config.upscale)):
        c_out = features * factor**2
        rows += _expert_conv(f"upconv{i + 1}", f"upconvs.{i}", features, c_out, experts)
    rows += _expert_conv("conv_hr", "conv_hr", features, features, experts)
    return rows + _expert_conv("conv_last", "conv_last", features, _IMAGE_CHANNELS, experts)


def predictor_table(config: DASRConfig) -> list[Row]:
    """List the rows of a predictor, without prefixes."""
    convs = len(PREDICTOR_STRIDES)
    widths = [_IMAGE_CHANNELS, *[config.predictor_features] * (convs - 1), config.num_params]
    rows: list[Row] = []
    for i in range(convs):
        # Activations have the odd numbers.
        rows += conv(f"ConvNet.{2 * i}", f"convs.{i}", widths[i], widths[i + 1], 5)
    rows += linear("MappingNet.0", "hidden", config.num_params, config.hidden)
    return rows + linear("MappingNet.1", "out", config.hidden, config.num_experts)


def dasr_table(config: DASRConfig) -> list[Row]:
    """List the rows of both networks, as generator.* and predictor.* on either side."""
    return with_prefix(generator_table(config), GENERATOR_PREFIX, GENERATOR_PREFIX) + with_prefix(
        predictor_table(config), PREDICTOR_PREFIX, PREDICTOR_PREFIX
    )


def infer_dasr(state: State) -> DASRConfig:
    """Infer the configuration of generator.* and predictor.* from their keys and shapes.

    Raises:
      UserError: the keys are not those of DASR, or it enlarges by other factors than 2, 3 and 4.
    """
    with config_errors(state.source, "these are not the networks of DASR"):
        experts, features, *_ = state.shape(f"{GENERATOR_PREFIX}conv_first.weight")
        _, shuffled, *_ = state.shape(f"{GENERATOR_PREFIX}upconv1.weight")
        width, *_ = state.shape(f"{PREDICTOR_PREFIX}ConvNet.0.weight")
        hidden, num_params = state.shape(f"{PREDICTOR_PREFIX}MappingNet.0.weight")
        # One step by 2 or 3, or two by 2; the configuration refuses others.
        twice = state.has(f"{GENERATOR_PREFIX}upconv2.")
        upscale: Any = 4 if twice else math.isqrt(shuffled // features)
        return DASRConfig(
            num_features=features,
            num_blocks=count(state, f"{GENERATOR_PREFIX}body.%d."),
            num_experts=experts,
            upscale=upscale,
            predictor_features=width,
            num_params=num_params,
            hidden=hidden,
        )


def config_from_yaml(settings: Settings, generator: str = "network_g") -> DASRConfig:
    """Read the configuration of one generator and of the predictor from the options of a run.

    Args:
      settings: the top of the file; it has `network_p` and the mapping named next.
      generator: name of the mapping with the generator's options.

    Raises:
      UserError: a field that is missing, or a network that this project does not have.
    """
    network, predictor = settings.at(generator), settings.at("network_p")
    sides = (network, "num_in_ch"), (network, "num_out_ch"), (predictor, "in_nc")
    for node, name in sides:
        if node.get(name, _IMAGE_CHANNELS) != _IMAGE_CHANNELS:
            node.fail(name, f"images have {_IMAGE_CHANNELS} channels")
    experts = network.value("num_models")
    if predictor.value("num_networks") != experts:
        predictor.fail("num_networks", f"the generator has {experts} experts")
    with config_errors(str(settings.path), "correct the file"):
        return DASRConfig(
            num_features=network.value("num_feat"),
            num_blocks=network.value("num_block"),
            num_experts=experts,
            upscale=network.value("upscale"),
            predictor_features=predictor.value("nf"),
            num_params=predictor.value("num_params"),
        )
