"""config.json files of diffusers and transformers as our configurations, and back."""

from __future__ import annotations

from typing import Any

from dossr_jax.config import ProcessConfig, SamplerConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.pytorch.infer import Settings, config_errors, count
from dossr_jax.pytorch.state import State
from dossr_jax.systems.dossr.diffusers.scheduler import CLASS, read_fields

_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
# What networks of SD 2.x have in common, where no tensor would tell a difference.
_UNET = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
}
_CONTROL = {
    name: value
    for name, value in _UNET.items()
    if name != "center_input_sample"  # which a ControlNet does not have
} | {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False}


def read_unet(settings: Settings) -> UNetConfig:
    """Configuration of a UNet2DConditionModel.

    Raises:
      UserError: it is none of SD 2.x.
    """
    _check(settings, "UNet2DConditionModel", _UNET)
    return _read_blocks(settings, "UNet", settings.value("out_channels"))


def read_control(settings: Settings) -> UNetConfig:
    """Configuration of the UNet that a ControlNetModel belongs to.

    Raises:
      UserError: it is none of SD 2.x.
    """
    _check(settings, "ControlNetModel", _CONTROL)
    return _read_blocks(settings, "ControlNet", settings.value("in_channels"))


def read_vae(settings: Settings) -> VAEConfig:
    """Configuration of an AutoencoderKL.

    Raises:
      UserError: it is none of SD.
    """
    _check(settings, "AutoencoderKL", {"act_fn": "silu"})
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


def read_text(settings: Settings, state: State) -> TextConfig:
    """Configuration of a CLIPTextModel with the given tensors.

    Raises:
      UserError: it is none of SD 2.x.
    """
    if settings.get("hidden_act", "gelu") != "gelu":
        settings.fail("hidden_act", "the text tower of SD 2.x has gelu")
    vocab_size, width = state.shape("embeddings.token_embedding.weight")
    # What diffusers stores is what runs: the last layer is gone, and so are the projections.
    return TextConfig(
        vocab_size=vocab_size,
        context_length=state.shape("embeddings.position_embedding.weight")[0],
        width=width,
        layers=count(state, "encoder.layers.%d."),
        heads=settings.get("num_attention_heads", width // 64),
        skip_layers=0,
        projection_dim=0,
    )


def read_scheduler(settings: Settings) -> tuple[ProcessConfig, SamplerConfig, str | None]:
    """Process and sampler of any scheduler of SD, and what the user has to know of it.

    Raises:
      UserError: a schedule that DoSSR does not have.
    """
    with config_errors(str(settings.path), "DoSSR cannot sample with it"):
        if settings.get("_class_name", None) == CLASS:
            return *read_fields(settings.tree), None
        kind = settings.get("prediction_type", "epsilon")
        process, _ = read_fields(
            {
                name: settings.tree[name]
                for name in ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end")
                if name in settings.tree
            }
        )
    note = (
        f"WARNING: this UNet predicts {kind}, DoSSR's predicts epsilon: start from "
        "SD 2.1-base rather"
    )
    return process, SamplerConfig(), None if kind == "epsilon" else note


def _check(settings: Settings, kind: str, fixed: dict[str, Any]) -> None:
    found = settings.get("_class_name", kind)
    if found != kind:
        settings.fail("_class_name", f"describes a {found}, not a {kind}")
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            settings.fail(name, f"it must be {value!r}, as in SD 2.x")


def _read_blocks(settings: Settings, network: str, out_channels: int) -> UNetConfig:
    with config_errors(str(settings.path), f"this {network} is not supported"):
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
        blocks = settings.value("down_block_types")
        if not set(blocks) <= set(_BLOCKS) or len(blocks) != len(widths):
            settings.fail("down_block_types", f"only {' and '.join(_BLOCKS)} are supported")
        return UNetConfig(
            in_channels=settings.value("in_channels"),
            out_channels=out_channels,
            model_channels=widths[0],
            channel_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=settings.value("layers_per_block"),
            attention_levels=tuple(_BLOCKS[block] for block in blocks),
            head_dim=head_dims.pop(),
            context_dim=settings.value("cross_attention_dim"),
            transformer_depth=depths.pop(),
            norm_groups=settings.get("norm_num_groups", 32),
        )


def _per_level(value: Any, widths: list[int]) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * len(widths)


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The inverse of :func:`read_unet`."""
    up = ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention_levels)]
    return {
        "_class_name": "UNet2DConditionModel",
        **_UNET,
        **_blocks_json(config),
        "out_channels": config.out_channels,
        "sample_size": 64,
        "up_block_types": up,
    }


def control_json(config: UNetConfig, hint_channels: int) -> dict[str, Any]:
    """The inverse of :func:`read_control`, with a hint as :mod:`hint` writes it."""
    return {
        "_class_name": "ControlNetModel",
        **_CONTROL,
        **_blocks_json(config),
        "conditioning_channels": hint_channels,
        "conditioning_embedding_out_channels": [2 * hint_channels],
    }


def _blocks_json(config: UNetConfig) -> dict[str, Any]:
    widths = [mult * config.model_channels for mult in config.channel_mult]
    names = {on: name for name, on in _BLOCKS.items()}
    return {
        "attention_head_dim": [width // config.head_dim for width in widths],
        "block_out_channels": widths,
        "cross_attention_dim": config.context_dim,
        "down_block_types": [names[on] for on in config.attention_levels],
        "in_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.norm_groups,
        "transformer_layers_per_block": config.transformer_depth,
        "use_linear_projection": True,
    }


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """The inverse of :func:`read_vae`."""
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


def text_json(config: TextConfig) -> dict[str, Any]:
    """The inverse of :func:`read_text`, for the layers that run."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers - config.skip_layers,
        "vocab_size": config.vocab_size,
    }
