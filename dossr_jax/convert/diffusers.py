"""diffusers folders of SD 2.1 (unet/, vae/, text_encoder/), read and written.

A ControlNet with DoSSR's eight input channels, a hint encoder and a pre-restorer have no place in
such a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dossr_jax.config import DoSSRConfig, ProcessConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.convert.infer import config_errors
from dossr_jax.convert.release import RRDB, Model, check_release_shape, join
from dossr_jax.convert.state import Lazy, State, from_safetensors, to_ours, to_torch
from dossr_jax.convert.tables import text_table, unet_table, vae_table
from dossr_jax.errors import UserError
from dossr_jax.weights import SafetensorsFile, write_safetensors

# Autoencoders saved before diffusers 0.12 name their attention so.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_CONFIG = "config.json"
_UNET_WEIGHTS = "diffusion_pytorch_model"
_TEXT_WEIGHTS = "model"


def is_diffusers(path: Path) -> bool:
    """Whether a folder looks like a diffusers model."""
    return (path / "unet").is_dir()


def read_diffusers(path: Path, rrdb: RRDB) -> Model:
    """A diffusers folder and a pre-restorer as the DoSSR that training starts from.

    Raises:
      UserError: a part is missing or damaged, or its network is none of SD 2.x.
    """
    unet_config = _unet_config(path / "unet")
    vae_config = _vae_config(path / "vae")
    process, note = _process(path / "scheduler")
    with config_errors(str(path), "UNet and VAE do not belong together"):
        config = DoSSRConfig(unet=unet_config, vae=vae_config, process=process)
    unet = to_ours(unet_table(config.unet, "diffusers"), _read_part(path / "unet", _UNET_WEIGHTS))
    vae = _read_part(path / "vae", _UNET_WEIGHTS).rename(_new_attention)
    tensors = {f"unet.{name}": tensor for name, tensor in unet.items()}
    tensors |= {
        f"vae.{name}": tensor
        for name, tensor in to_ours(vae_table(config.vae, "diffusers"), vae).items()
    }
    if (path / "text_encoder").is_dir():
        text_config, text = _read_text(path / "text_encoder")
        config = DoSSRConfig(unet=unet_config, vae=vae_config, process=process, text=text_config)
        tensors |= {f"text.{name}": tensor for name, tensor in text.items()}
    model = join(config, tensors, rrdb)
    return model if note is None else model.replace(note=note)


def export_diffusers(model: Model) -> dict[str, tuple[dict[str, Any], dict[str, Lazy]]]:
    """Sub-folder -> (config.json, tensors) of a model's UNet and VAE.

    Raises:
      UserError: diffusers has no such network.
    """
    check_release_shape(model.config)

    def part(prefix: str) -> State:
        return State("the model", dict(model.tensors)).below(prefix)

    return {
        "unet": (
            _unet_json(model.config.unet),
            to_torch(unet_table(model.config.unet, "diffusers"), part("unet.")),
        ),
        "vae": (
            _vae_json(model.config.vae),
            to_torch(vae_table(model.config.vae, "diffusers"), part("vae.")),
        ),
    }


def write_part(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy], read: Any
) -> None:
    """Write one sub-folder; `read` is :func:`write_safetensors`'s."""
    folder.mkdir()
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # Transformers and diffusers refuse files that do not say which framework they are for.
    write_safetensors(folder / f"{_UNET_WEIGHTS}.safetensors", tensors, read, {"format": "pt"})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a diffusers folder has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); copy it again") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a JSON object; copy it again")
    return tree


def _read_part(folder: Path, stem: str) -> State:
    """All tensors of a sub-folder: one file, its half-precision variant, or shards."""
    index = folder / f"{stem}.safetensors.index.json"
    whole = [folder / f"{stem}{variant}.safetensors" for variant in ("", ".fp16", ".bf16")]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index}: has no weight_map; copy it again")
        files = [folder / Path(str(name)).name for name in sorted(set(shards.values()))]
    else:
        files = [file for file in whole if file.is_file()][:1]
    if not files:
        raise UserError(f"{folder}: holds no {stem}.safetensors; save the model with safe tensors")
    tensors: dict[str, Lazy] = {}
    doubled: list[str] = []
    for file in files:
        state = from_safetensors(SafetensorsFile(file))
        doubled += [f"{name} (again in {file.name})" for name in state.tensors if name in tensors]
        tensors |= state.tensors
    return State(str(folder), tensors, tuple(doubled))


def _new_attention(name: str) -> str:
    return re.sub(
        r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.",
        lambda match: f"{match[1]}.{_OLD_ATTENTION[match[2]]}.",
        name,
    )


class _Settings:
    """A config.json, with errors that name it."""

    def __init__(self, folder: Path, kind: str):
        self.path = folder / _CONFIG
        self.tree = _read_json(self.path)
        found = self.tree.get("_class_name", kind)
        if found != kind:
            raise UserError(f"{self.path}: describes a {found}, not a {kind}")

    def value(self, name: str) -> Any:
        if name not in self.tree:
            raise UserError(f"{self.path}: {name} is missing; copy it again")
        return self.tree[name]

    def fail(self, name: str, reason: str) -> None:
        raise UserError(f"{self.path}: {name} is {self.tree.get(name)!r}; {reason}")


def _unet_config(folder: Path) -> UNetConfig:
    settings = _Settings(folder, "UNet2DConditionModel")
    with config_errors(str(settings.path), "this UNet is not supported"):
        widths = settings.value("block_out_channels")
        # diffusers writes the number of heads under this name.
        heads = settings.tree.get("num_attention_heads") or settings.value("attention_head_dim")
        heads = _per_level(heads, widths)
        head_dims = {width // count for width, count in zip(widths, heads, strict=True)}
        if len(head_dims) != 1:
            settings.fail("attention_head_dim", "all heads must be of one width, as in SD 2.x")
        depths = set(_per_level(settings.tree.get("transformer_layers_per_block", 1), widths))
        if len(depths) != 1:
            settings.fail("transformer_layers_per_block", "it must be the same at all levels")
        if not settings.tree.get("use_linear_projection", False):
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
            norm_groups=settings.tree.get("norm_num_groups", 32),
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
    settings = _Settings(folder, "AutoencoderKL")
    for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        if not settings.tree.get(name, True):
            settings.fail(name, "an autoencoder of SD has it")
    with config_errors(str(settings.path), "this autoencoder is not supported"):
        widths = settings.value("block_out_channels")
        return VAEConfig(
            in_channels=settings.value("in_channels"),
            z_channels=settings.value("latent_channels"),
            base_channels=widths[0],
            channel_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=settings.value("layers_per_block"),
            norm_groups=settings.tree.get("norm_num_groups", 32),
            scale_factor=settings.tree.get("scaling_factor", 0.18215),
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
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": 512,
        "scaling_factor": config.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _process(folder: Path) -> tuple[ProcessConfig, str | None]:
    path = folder / "scheduler_config.json"
    if not path.is_file():
        return ProcessConfig(), None
    tree, default = _read_json(path), ProcessConfig()
    if tree.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise UserError(
            f"{path}: beta_schedule is {tree['beta_schedule']!r}; DoSSR's is scaled_linear, as SD's"
        )
    process = ProcessConfig(
        timesteps=tree.get("num_train_timesteps", default.timesteps),
        beta_start=tree.get("beta_start", default.beta_start),
        beta_end=tree.get("beta_end", default.beta_end),
    )
    kind = tree.get("prediction_type", "epsilon")
    note = None
    if kind != "epsilon":
        note = (
            f"WARNING: this UNet predicts {kind}, DoSSR's predicts epsilon: start from "
            "SD 2.1-base rather"
        )
    return process, note


def _read_text(folder: Path) -> tuple[TextConfig, dict[str, Lazy]]:
    settings = _read_json(folder / _CONFIG)
    activation = settings.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(
            f"{folder / _CONFIG}: hidden_act is {activation!r}; the text tower of SD 2.x has gelu"
        )
    state = _read_part(folder, _TEXT_WEIGHTS).rename(lambda n: n.removeprefix("text_model."))
    state = state.select(lambda name: name != "embeddings.position_ids")
    vocab_size, width = state.shape("embeddings.token_embedding.weight")
    pattern = re.compile(r"encoder\.layers\.(\d+)\.")
    layers = {int(match[1]) for name in state.tensors if (match := pattern.match(name))}
    # What diffusers stores is what runs: the last layer is gone, and so are the projections.
    config = TextConfig(
        vocab_size=vocab_size,
        context_length=state.shape("embeddings.position_embedding.weight")[0],
        width=width,
        layers=max(layers, default=-1) + 1,
        heads=settings.get("num_attention_heads", width // 64),
        skip_layers=0,
        projection_dim=0,
    )
    return config, to_ours(text_table(config, "transformers"), state)
