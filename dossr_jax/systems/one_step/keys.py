"""Checkpoints of the one-step systems: Stable Diffusion 2.1, and a file of adapters beside it.

Adapters lie under the names that diffusers gives the layers which they change, behind the entry
of their file and before the name of their group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dossr_jax.config import ProcessConfig
from dossr_jax.errors import UserError
from dossr_jax.models.lora import is_adapted
from dossr_jax.pytorch.infer import config_errors, infer_process
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import (
    UNET_PREFIX,
    Row,
    unet_table,
    vae_encoder_table,
    with_prefix,
)
from dossr_jax.systems.base import Model
from dossr_jax.systems.files import BUFFER_PREFIX
from dossr_jax.systems.one_step.config import OneStepConfig, OSEDiffConfig, PiSASRConfig
from dossr_jax.systems.sd21 import check_as_sd21, read_sd21, sd21_table, split_buffers
from dossr_jax.weights import Lazy

ADAPTERS_PREFIX = "state_dict_unet."
_VAE_PREFIX = "state_dict_vae."
_RANK_UNET = f"{ADAPTERS_PREFIX}conv_in.lora_A.default_encoder"
_RANK_VAE = f"{_VAE_PREFIX}quant_conv.lora_A.default_encoder.weight"
# Nothing runs adapters of these, which some files have.
_IDLE = (f"{_VAE_PREFIX}decoder.", f"{_VAE_PREFIX}post_quant_conv.")
# OSEDiff has trained the UNet's first convolution and stores it whole with its adapters.
_SD_CONV_IN = f"{UNET_PREFIX}input_blocks.0.0"
_TRAINED_CONV_IN = f"{ADAPTERS_PREFIX}conv_in.base_layer"

SD_MARK = f"{_SD_CONV_IN}.weight"
OSEDIFF_MARK = f"{_RANK_UNET}.weight"
PISASR_MARK = f"{_RANK_UNET}_pix.weight"


def adapter_rows(layers: Iterable[Row], rank: int, name_of: Callable[[str], str]) -> list[Row]:
    """List the rows of adapters for the layers of a network.

    Args:
      layers: rows of the network, under diffusers' names.
      name_of: from the name of a layer there to that of its adapter.
    """
    rows = []
    for layer in layers:
        if not is_adapted(tuple(layer.ours.split("."))):
            continue
        theirs, ours = layer.torch.removesuffix(".weight"), layer.ours.removesuffix(".kernel")
        c_out, c_in, *window = layer.shape
        down, up = (f"{theirs}.lora_{part}.{name_of(theirs)}.weight" for part in "AB")
        rows.append(Row(down, f"{ours}.down", layer.transform, (rank, c_in, *window)))
        if window:
            rows.append(Row(up, f"{ours}.up", "conv1x1_linear", (c_out, rank, 1, 1)))
        else:
            rows.append(Row(up, f"{ours}.up", "linear", (c_out, rank)))
    return rows


def _group(layer: str) -> str:
    """The adapter of a layer of the UNet, by the part that it is in."""
    if "down_blocks" in layer or "conv_in" in layer:
        return "default_encoder"
    return "default_decoder" if "up_blocks" in layer or "conv_out" in layer else "default_others"


def osediff_table(config: OSEDiffConfig) -> list[Row]:
    """List the rows of SD, whose first convolution is the trained one, and of the adapters."""
    unet = adapter_rows(unet_table(config.unet, "diffusers"), config.rank_unet, _group)
    encoder = vae_encoder_table(config.vae, "diffusers")
    encoder = adapter_rows(encoder, config.rank_vae, lambda layer: "default_encoder")
    rows = sd21_table(config) + with_prefix(unet, ADAPTERS_PREFIX, "lora.unet.")
    return rows + with_prefix(encoder, _VAE_PREFIX, "lora.vae.encoder.")


def pisasr_table(config: PiSASRConfig) -> list[Row]:
    """List the rows of SD and of both sets of adapters."""
    unet = unet_table(config.unet, "diffusers")
    pixel = adapter_rows(unet, config.rank_pixel, lambda layer: f"{_group(layer)}_pix")
    semantic = adapter_rows(unet, config.rank_semantic, lambda layer: f"{_group(layer)}_sem")
    rows = sd21_table(config) + with_prefix(pixel, ADAPTERS_PREFIX, "pixel_lora.unet.")
    return rows + with_prefix(semantic, ADAPTERS_PREFIX, "semantic_lora.unet.")


def read_osediff(state: State, variant: str | None) -> Model:
    """OSEDiff, of SD's tensors and its own together.

    The trained first convolution takes the place of SD's, which is not kept.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key.
    """
    tensors = {name: t for name, t in state.tensors.items() if not name.startswith(_IDLE)}
    notes = [f"first convolution from {_TRAINED_CONV_IN}.*; SD's is not kept"]
    if idle := len(state.tensors) - len(tensors):
        notes.append(f"{idle} tensors of adapters of the VAE's decoder left out: nothing runs them")
    for kind in ("weight", "bias"):
        trained, original = f"{_TRAINED_CONV_IN}.{kind}", f"{_SD_CONV_IN}.{kind}"
        found, expected = state.shape(trained), state.shape(original)
        if found != expected:
            raise UserError(
                f"{state.source}: {trained} is {found}, SD's is {expected}; check that these are "
                "the files of one model"
            )
        tensors[original] = tensors.pop(trained)
    ranks = {"rank_unet": OSEDIFF_MARK, "rank_vae": _RANK_VAE}
    state = State(state.source, tensors, state.doubled)
    return _read(state, OSEDiffConfig, ranks, osediff_table, notes)


def read_pisasr(state: State, variant: str | None) -> Model:
    """PiSA-SR, of SD's tensors and its own together.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key.
    """
    ranks = {"rank_pixel": PISASR_MARK, "rank_semantic": f"{_RANK_UNET}_sem.weight"}
    return _read(state, PiSASRConfig, ranks, pisasr_table)


def export_osediff(model: Model) -> dict[str, Lazy]:
    """Bring a model under the keys of SD and of its own.

    The trained first convolution stands in SD's place, too.

    Raises:
      UserError: a network that these keys do not tell.
    """
    tensors = _export(model, osediff_table(model.config))
    trained = {f"{_TRAINED_CONV_IN}.{k}": tensors[f"{_SD_CONV_IN}.{k}"] for k in ("weight", "bias")}
    return tensors | trained


def export_pisasr(model: Model) -> dict[str, Lazy]:
    """Bring a model under the keys of SD and of its own.

    Raises:
      UserError: a network that these keys do not tell.
    """
    return _export(model, pisasr_table(model.config))


def _read(
    state: State,
    cls: type[OneStepConfig],
    ranks: Mapping[str, str],
    table: Callable[[Any], list[Row]],
    notes: Iterable[str] = (),
) -> Model:
    """A model of configuration `cls`; `ranks` maps its fields to adapters that have that rank."""
    # What has no rank, a scalar, is refused with the configuration.
    sizes: dict[str, Any] = {f: next(iter(state.shape(name)), 0) for f, name in ranks.items()}
    with config_errors(state.source, "check that these are the files of one model"):
        parts = read_sd21(state)
        config = cls(
            unet=parts.unet,
            vae=parts.vae,
            text=parts.text,
            process=infer_process(split_buffers(state)[0], ProcessConfig()),
            **sizes,
        )
    tensors = to_ours(table(config), parts.others)
    return Model(config, {**tensors, **parts.buffers}, (*parts.notes, *notes))


def _export(model: Model, table: list[Row]) -> dict[str, Lazy]:
    state = State("the model", model.tensors)
    contexts = "context", "negative_context"
    learned = state.select(lambda n: n not in contexts and not n.startswith(BUFFER_PREFIX))
    check_as_sd21(model.config)
    return {**state.below(BUFFER_PREFIX).tensors, **to_torch(table, learned)}
