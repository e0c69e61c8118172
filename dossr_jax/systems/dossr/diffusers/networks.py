"""Whole networks: configuration and tensors of diffusers as ours, and back, by the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dossr_jax.config import (
    DoSSRConfig,
    ProcessConfig,
    SamplerConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings, config_errors
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import Row, control_table, text_table, unet_table, vae_table
from dossr_jax.systems.base import Model
from dossr_jax.systems.dossr.diffusers import configs
from dossr_jax.systems.dossr.diffusers.hint import join_hint, split_hint
from dossr_jax.systems.dossr.release import RRDB, check_release_shape, join
from dossr_jax.weights import Lazy

# What diffusers calls the networks, and the attributes of our models.
NAMES = {"unet": "unet", "controlnet": "control", "vae": "vae", "text_encoder": "text"}
# Names in the attention of autoencoders that were saved before diffusers 0.12.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT = "text_model."


class Source(NamedTuple):
    """A network of diffusers: its config.json and its tensors."""

    settings: Settings
    state: State


class Part(NamedTuple):
    """A network to write: its config.json and its tensors."""

    json: dict[str, Any]
    tensors: dict[str, Lazy]


class Configs(NamedTuple):
    """Configurations of networks, None for those that are not there."""

    unet: UNetConfig | None = None
    control: UNetConfig | None = None
    vae: VAEConfig | None = None
    text: TextConfig | None = None


def read_networks(sources: Mapping[str, Source]) -> tuple[Configs, dict[str, Lazy]]:
    """Configurations, and tensors under our names ("unet.", "control.", "vae.", "text." in front).

    Args:
      sources: networks by diffusers' names, those of NAMES.

    Raises:
      UserError: a network that is none of SD 2.x, or tensors that do not fit its configuration.
    """
    found = _read_configs(sources)
    return found, _read_tensors(found, sources)


def _read_configs(sources: Mapping[str, Source]) -> Configs:
    read: Mapping[str, Callable[[Source], Any]] = {
        "unet": lambda source: configs.read_unet(source.settings),
        "controlnet": lambda source: configs.read_control(source.settings),
        "vae": lambda source: configs.read_vae(source.settings),
        "text_encoder": lambda source: configs.read_text(source.settings, _tower(source.state)),
    }
    values: dict[str, Any] = {NAMES[name]: read[name](sources[name]) for name in sources}
    found = Configs(**values)
    unet, control = found.unet, found.control
    if unet is not None and control is not None:
        if dataclasses.replace(control, out_channels=unet.out_channels) != unet:
            raise UserError(
                f"{sources['controlnet'].settings.path}: not of the same size as the UNet, "
                f"{sources['unet'].settings.path}; give a ControlNet of that UNet"
            )
    return found


def _read_tensors(found: Configs, sources: Mapping[str, Source]) -> dict[str, Lazy]:
    tables: dict[str, tuple[list[Row], State]] = {}
    if found.unet is not None:
        tables["unet"] = unet_table(found.unet, "diffusers"), sources["unet"].state
    if found.control is not None:
        state = join_hint(sources["controlnet"].state, found.control.in_channels)
        tables["control"] = control_table(found.control, "diffusers"), state
    if found.vae is not None:
        state = sources["vae"].state.rename(_new_attention)
        tables["vae"] = vae_table(found.vae, "diffusers"), state
    if found.text is not None:
        tower = _tower(sources["text_encoder"].state)
        tables["text"] = text_table(found.text, "transformers"), tower
    return {
        f"{network}.{name}": tensor
        for network, (rows, state) in tables.items()
        for name, tensor in to_ours(rows, state).items()
    }


def read_model(
    sources: Mapping[str, Source], scheduler: Settings | None, rrdb: RRDB, origin: str
) -> Model:
    """A DoSSR of its networks; without a ControlNet among them, what training starts from.

    Args:
      sources: as for :func:`read_networks`; UNet and VAE are there.
      scheduler: of the noise that the UNet was trained with; SD's by default.
      rrdb: the pre-restorer. origin: where all of it comes from, for messages.

    Raises:
      UserError: as :func:`read_networks`, or networks that do not belong together.
    """
    found = _read_configs(sources)
    process, sampler, note = ProcessConfig(), SamplerConfig(), None
    if scheduler is not None:
        process, sampler, note = configs.read_scheduler(scheduler)
    assert found.unet is not None and found.vae is not None
    with config_errors(origin, "UNet and VAE do not belong together"):
        config = DoSSRConfig(
            unet=found.unet, vae=found.vae, process=process, sampler=sampler, text=found.text
        )
    model = join(config, _read_tensors(found, sources), rrdb)
    return model if note is None else model.replace(note=note)


def export_networks(found: Configs, tensors: Mapping[str, Lazy]) -> dict[str, Part]:
    """Networks by diffusers' names; the inverse of :func:`read_networks`, bit for bit.

    Of a text tower the layers that run are written, and no projection.

    Raises:
      UserError: diffusers has no such network.
    """
    state, parts = State("the model", tensors), {}
    if found.unet is not None:
        rows = unet_table(found.unet, "diffusers")
        parts["unet"] = Part(configs.unet_json(found.unet), to_torch(rows, state.below("unet.")))
    if found.control is not None:
        channels = found.control.in_channels
        rows = control_table(found.control, "diffusers")
        whole = State(state.source, to_torch(rows, state.below("control.")))
        control = split_hint(whole, channels)
        parts["controlnet"] = Part(
            configs.control_json(found.control, channels), dict(control.tensors)
        )
    if found.vae is not None:
        rows = vae_table(found.vae, "diffusers")
        parts["vae"] = Part(configs.vae_json(found.vae), to_torch(rows, state.below("vae.")))
    if found.text is not None:
        config, tower = _running(found.text, state.below("text."))
        converted = to_torch(text_table(config, "transformers"), tower)
        parts["text_encoder"] = Part(configs.text_json(config), converted)
    return parts


def export_model(model: Model) -> dict[str, Part]:
    """:func:`export_networks` of a DoSSR; :func:`left_out` says what has no place there.

    Raises:
      UserError: diffusers has no such network.
    """
    config = model.config
    check_release_shape(config)
    found = Configs(config.unet, config.unet, config.vae, config.text)
    return export_networks(found, model.tensors)


def left_out(config: DoSSRConfig) -> str:
    """What of a DoSSR has no place among networks of diffusers."""
    parts = ["pre-restorer"]
    if not config.shared_encoder:
        parts.append("hint encoder, which differs from the VAE's,")
    if config.text is None:
        parts.append("prompt embeddings")
    elif config.text.skip_layers or config.text.projection_dim:
        parts.append("layers and projection of the text tower that do not run")
    return " and ".join(parts)


def _running(config: TextConfig, state: State) -> tuple[TextConfig, State]:
    """A text tower cut down to what runs."""
    layers = config.layers - config.skip_layers
    unused = [f"blocks.{i}." for i in range(layers, config.layers)]
    unused += ["text_projection", "logit_scale"]
    cut = dataclasses.replace(config, layers=layers, skip_layers=0, projection_dim=0)
    return cut, state.select(lambda name: not name.startswith(tuple(unused)))


def _tower(state: State) -> State:
    state = state.rename(lambda name: name.removeprefix(_TEXT))
    return state.select(lambda name: name != "embeddings.position_ids")


def _new_attention(name: str) -> str:
    block, attention, layer = name.rpartition("mid_block.attentions.0.")
    old, dot, kind = layer.partition(".")
    return f"{block}{attention}{_OLD_ATTENTION.get(old, old)}{dot}{kind}" if attention else name
