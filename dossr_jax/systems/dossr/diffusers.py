"""diffusers folders of SD 2.1 (unet/, vae/, text_encoder/), read and written.

A ControlNet with DoSSR's eight input channels, a hint encoder and a pre-restorer have no place in
such a folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dossr_jax.config import DoSSRConfig, ProcessConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import (
    Settings,
    config_errors,
    count,
    infer_unet,
    infer_vae,
    read_settings,
)
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Row,
    text_table,
    unet_table,
    vae_table,
)
from dossr_jax.systems.base import Model
from dossr_jax.systems.dossr.release import RRDB, check_release_shape, join
from dossr_jax.weights import Lazy, read_tensors, write_safetensors

# Names in the attention of autoencoders that were saved before diffusers 0.12.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model"


def read_diffusers(path: Path, rrdb: RRDB) -> Model:
    """Make the DoSSR that training starts from of a diffusers folder and a pre-restorer.

    Raises:
      UserError: a part is missing or damaged, or its network is none of SD 2.x.
    """
    unet, vae = _unet_config(path / "unet"), _vae_config(path / "vae")
    process, note = _process(path / "scheduler" / "scheduler_config.json")
    with config_errors(str(path), "UNet and VAE do not belong together"):
        config = DoSSRConfig(unet=unet, vae=vae, process=process)
    unet_state = _read_part(path / "unet", _WEIGHTS)
    vae_state = _read_part(path / "vae", _WEIGHTS).rename(_new_attention)
    parts = {
        "unet": to_ours(unet_table(unet, "diffusers"), unet_state),
        "vae": to_ours(vae_table(vae, "diffusers"), vae_state),
    }
    if (path / "text_encoder").is_dir():
        text, parts["text"] = _read_text(path / "text_encoder")
        config = dataclasses.replace(config, text=text)
    tensors = {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}
    model = join(config, tensors, rrdb)
    return model if note is None else model.replace(note=note)


def read_as_ldm(path: Path) -> State:
    """The networks of a folder under the names that SD 2.1's single file gives them.

    Raises:
      UserError: a part is missing or damaged, or its network is none of SD 2.1-base, whose names
        and shapes tell all that a folder says besides.
    """
    unet, vae = _unet_config(path / "unet"), _vae_config(path / "vae")
    vae_state = _read_part(path / "vae", _WEIGHTS).rename(_new_attention)
    tensors = _as_ldm(
        UNET_PREFIX,
        to_ours(unet_table(unet, "diffusers"), _read_part(path / "unet", _WEIGHTS)),
        unet_table(unet),
    )
    tensors |= _as_ldm(VAE_PREFIX, to_ours(vae_table(vae, "diffusers"), vae_state), vae_table(vae))
    state = State(str(path), tensors)
    told = infer_unet(state.below(UNET_PREFIX), None), infer_vae(state.below(VAE_PREFIX))
    process, note = _process(path / "scheduler" / "scheduler_config.json")
    if told != (unet, vae) or process != ProcessConfig() or note is not None:
        raise UserError(
            f"{path}: its networks or its schedule are not those of SD 2.1-base, which is needed"
        )
    if (path / "text_encoder").is_dir():
        text, tower = _read_text(path / "text_encoder")
        tensors |= _as_ldm(TEXT_PREFIX, tower, text_table(text))
    return State(str(path), tensors)


def _as_ldm(prefix: str, tensors: Mapping[str, Lazy], table: Iterable[Row]) -> dict[str, Lazy]:
    found = to_torch(table, State("the folder", tensors))
    return {prefix + name: tensor for name, tensor in found.items()}


def export_diffusers(model: Model) -> dict[str, tuple[dict[str, Any], dict[str, Lazy]]]:
    """Map the two sub-folders to config.json and tensors of a model's UNet and VAE.

    Raises:
      UserError: diffusers has no such network.
    """
    config, state = model.config, State("the model", model.tensors)
    check_release_shape(config)
    unet = to_torch(unet_table(config.unet, "diffusers"), state.below("unet."))
    vae = to_torch(vae_table(config.vae, "diffusers"), state.below("vae."))
    return {"unet": (_unet_json(config.unet), unet), "vae": (_vae_json(config.vae), vae)}


def write_part(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> None:
    """Write one sub-folder."""
    folder.mkdir()
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # Transformers and diffusers refuse files that do not say which framework they are for.
    write_safetensors(folder / f"{_WEIGHTS}.safetensors", tensors, {"format": "pt"})


def _read_part(folder: Path, stem: str) -> State:
    """Read all tensors of a sub-folder: one file, its half-precision variant, or shards."""
    index = folder / f"{stem}.safetensors.index.json"
    whole = [folder / f"{stem}{variant}.safetensors" for variant in ("", ".fp16", ".bf16")]
    file = next((file for file in (index, *whole) if file.is_file()), None)
    if file is None:
        raise UserError(f"{folder}: holds no {stem}.safetensors; save the model with safe tensors")
    return State(str(folder), read_tensors(file)[0])


def _new_attention(name: str) -> str:
    block, attention, layer = name.rpartition("mid_block.attentions.0.")
    old, dot, kind = layer.partition(".")
    return f"{block}{attention}{_OLD_ATTENTION.get(old, old)}{dot}{kind}" if attention else name


def _read_config(folder: Path, kind: str) -> Settings:
    settings = read_settings(folder / _CONFIG)
    found = settings.get("_class_name", kind)
    if found != kind:
        raise UserError(f"{settings.path}: describes a {found}, not a {kind}")
    return settings


def _unet_config(folder: Path) -> UNetConfig:
    settings = _read_config(folder, "UNet2DConditionModel")
    with config_errors(str(settings.path), "this UNet is not supported"):
        widths = settings.value("block_out_channels")
        # diffusers writes the number of heads under this name.
        heads = settings.get("num_attention_heads", None) or settings.value("attention_head_dim")
        heads = _per_level(heads, widths)
        head_dims = {width // number for width, number in zip(widths, heads, strict=True)}
        if len(head_dims) != 1:
            settings.fail("attention_head_dim", "all heads must be of one width, as in SD 2.x")
        depths = set(_per_level(settings.get("transformer_layers_per_block", 1), widths))
        if len(depths) != 1:
            settings.fail("transformer_layers_per_block", "it must be the same at all levels")
        if not settings.get("use_linear_projection", False):
            settings.fail("use_linear_projection", "DoSSR needs SD 2.x weights, where it is true")
        kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
        blocks = settings.value("down_block_types")
        if not set(blocks) <= set(kinds) or len(blocks) != len(widths):
            settings.fail("down_block_types", f"only {' and '.join(kinds)} are supported")
        return UNetConfig(
            in_channels=settings.value("in_channels"),
            out_channels=settings.value("out_channels"),
            model_channels=widths[0],
            channel_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=settings.value("layers_per_block"),
            attention_levels=tuple(kinds[block] for block in blocks),
            head_dim=head_dims.pop(),
            context_dim=settings.value("cross_attention_dim"),
            transformer_depth=depths.pop(),
            norm_groups=settings.get("norm_num_groups", 32),
        )


def _per_level(value: Any, widths: list[int]) -> list[int]:
    return value if isinstance(value, list) else [value] * len(widths)


def _unet_json(config: UNetConfig) -> dict[str, Any]:
    widths = [mult * config.model_channels for mult in config.channel_mult]
    down = ["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.attention_levels]
    up = ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention_levels)]
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": [width // config.head_dim for width in widths],
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": config.context_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": 64,
        "transformer_layers_per_block": config.transformer_depth,
        "up_block_types": up,
        "use_linear_projection": True,
    }


def _vae_config(folder: Path) -> VAEConfig:
    settings = _read_config(folder, "AutoencoderKL")
    for name in ("use_quant_conv", "use_post_quant_conv"):
        if not settings.get(name, True):
            settings.fail(name, "an autoencoder of SD has it")
    with config_errors(str(settings.path), "this autoencoder is not supported"):
        widths = settings.value("block_out_channels")
        return VAEConfig(
            in_channels=settings.value("in_channels"),
            z_channels=settings.value("latent_channels"),
            base_channels=widths[0],
            channel_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=settings.value("layers_per_block"),
            norm_groups=settings.get("norm_num_groups", 32),
            mid_attention=settings.get("mid_block_add_attention", True),
            scale_factor=settings.get("scaling_factor", 0.18215),
        )


def _vae_json(config: VAEConfig) -> dict[str, Any]:
    levels = len(config.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [mult * config.base_channels for mult in config.channel_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": 512,
        "scaling_factor": config.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _process(path: Path) -> tuple[ProcessConfig, str | None]:
    """Read the noise schedule off the scheduler's file, and what the user has to know of it."""
    default = ProcessConfig()
    if not path.is_file():
        return default, None
    settings = read_settings(path)
    if settings.get("beta_schedule", "scaled_linear") != "scaled_linear":
        settings.fail("beta_schedule", "DoSSR's is scaled_linear, as SD's")
    process = ProcessConfig(
        timesteps=settings.get("num_train_timesteps", default.timesteps),
        beta_start=settings.get("beta_start", default.beta_start),
        beta_end=settings.get("beta_end", default.beta_end),
    )
    kind = settings.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return process, None
    return process, (
        f"WARNING: this UNet predicts {kind}, DoSSR's predicts epsilon: start from "
        "SD 2.1-base rather"
    )


def _read_text(folder: Path) -> tuple[TextConfig, dict[str, Lazy]]:
    settings = read_settings(folder / _CONFIG)
    if settings.get("hidden_act", "gelu") != "gelu":
        settings.fail("hidden_act", "the text tower of SD 2.x has gelu")
    state = _read_part(folder, "model").rename(lambda n: n.removeprefix("text_model."))
    state = state.select(lambda name: name != "embeddings.position_ids")
    vocab_size, width = state.shape("embeddings.token_embedding.weight")
    # What diffusers stores is what runs: the last layer is gone, and so are the projections.
    config = TextConfig(
        vocab_size=vocab_size,
        context_length=state.shape("embeddings.position_embedding.weight")[0],
        width=width,
        layers=count(state, "encoder.layers.%d."),
        heads=settings.get("num_attention_heads", width // 64),
        skip_layers=0,
        projection_dim=0,
    )
    return config, to_ours(text_table(config, "transformers"), state)
