"""Tables of the UNet and of the ControlNet, which has the UNet's encoder."""

from __future__ import annotations

from dossr_jax.config import UNetConfig
from dossr_jax.convert.tables.rows import Names, Naming, Row, conv, linear, norm, res
from dossr_jax.models.unet import encoder_channels

_RES = {
    "ldm": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
    "diffusers": {
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "conv_shortcut",
    },
}


def _transformer(torch: str, ours: str, channels: int, config: UNetConfig) -> list[Row]:
    # The names inside a SpatialTransformer are the same in LDM and in diffusers.
    rows = norm(f"{torch}.norm", f"{ours}.norm", channels)
    rows += linear(f"{torch}.proj_in", f"{ours}.proj_in", channels, channels)
    for i in range(config.transformer_depth):
        theirs, block = f"{torch}.transformer_blocks.{i}", f"{ours}.blocks.{i}"
        for name, d_context in (("attn1", channels), ("attn2", config.context_dim)):
            a, b = f"{theirs}.{name}", f"{block}.{name}"
            rows += linear(f"{a}.to_q", f"{b}.to_q", channels, channels, bias=False)
            rows += linear(f"{a}.to_k", f"{b}.to_k", d_context, channels, bias=False)
            rows += linear(f"{a}.to_v", f"{b}.to_v", d_context, channels, bias=False)
            rows += linear(f"{a}.to_out.0", f"{b}.to_out", channels, channels)
        rows += linear(f"{theirs}.ff.net.0.proj", f"{block}.ff.fc1", channels, 8 * channels)
        rows += linear(f"{theirs}.ff.net.2", f"{block}.ff.fc2", 4 * channels, channels)
        for name in ("norm1", "norm2", "norm3"):
            rows += norm(f"{theirs}.{name}", f"{block}.{name}", channels)
    return rows + linear(f"{torch}.proj_out", f"{ours}.proj_out", channels, channels)


def _ldm_unet_paths(config: UNetConfig) -> dict[str, str]:
    """Our block -> LDM's, which numbers encoder and decoder blocks through."""
    levels = len(config.channel_mult)
    paths = {
        "encoder.time.fc1": "time_embed.0",
        "encoder.time.fc2": "time_embed.2",
        "encoder.conv_in": "input_blocks.0.0",
        "encoder.mid.stage.res": "middle_block.0",
        "encoder.mid.stage.transformer": "middle_block.1",
        "encoder.mid.out.res": "middle_block.2",
        "norm_out": "out.0",
        "conv_out": "out.2",
    }
    index = 1
    for level in range(levels):
        for stage in range(config.num_res_blocks):
            paths[f"encoder.down.{level}.stages.{stage}.res"] = f"input_blocks.{index}.0"
            paths[f"encoder.down.{level}.stages.{stage}.transformer"] = f"input_blocks.{index}.1"
            index += 1
        if level < levels - 1:
            paths[f"encoder.down.{level}.downsample"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for up in range(levels):
        for stage in range(config.num_res_blocks + 1):
            paths[f"up.{up}.stages.{stage}.res"] = f"output_blocks.{index}.0"
            paths[f"up.{up}.stages.{stage}.transformer"] = f"output_blocks.{index}.1"
            index += 1
        # The upsampler follows the level's last stage, in the same numbered block.
        place = 2 if config.attention_levels[levels - 1 - up] else 1
        paths[f"up.{up}.upsample"] = f"output_blocks.{index - 1}.{place}.conv"
    return paths


def _diffusers_unet_paths(config: UNetConfig) -> dict[str, str]:
    """Our block -> diffusers'."""
    paths = {
        "encoder.time.fc1": "time_embedding.linear_1",
        "encoder.time.fc2": "time_embedding.linear_2",
        "encoder.conv_in": "conv_in",
        "encoder.mid.stage.res": "mid_block.resnets.0",
        "encoder.mid.stage.transformer": "mid_block.attentions.0",
        "encoder.mid.out.res": "mid_block.resnets.1",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    for i in range(len(config.channel_mult)):
        for ours, theirs, stages in (
            (f"encoder.down.{i}", f"down_blocks.{i}", config.num_res_blocks),
            (f"up.{i}", f"up_blocks.{i}", config.num_res_blocks + 1),
        ):
            for stage in range(stages):
                paths[f"{ours}.stages.{stage}.res"] = f"{theirs}.resnets.{stage}"
                paths[f"{ours}.stages.{stage}.transformer"] = f"{theirs}.attentions.{stage}"
        paths[f"encoder.down.{i}.downsample"] = f"down_blocks.{i}.downsamplers.0.conv"
        paths[f"up.{i}.upsample"] = f"up_blocks.{i}.upsamplers.0.conv"
    return paths


def _unet_paths(config: UNetConfig, naming: Naming) -> dict[str, str]:
    return _ldm_unet_paths(config) if naming == "ldm" else _diffusers_unet_paths(config)


def _stage(
    ours: str, paths: Names, names: Names, c_in: int, c_out: int, config: UNetConfig, attend: bool
) -> list[Row]:
    rows = res(paths[f"{ours}.res"], f"{ours}.res", names, c_in, c_out, config.time_dim)
    if attend:
        ours = f"{ours}.transformer"
        rows += _transformer(paths[ours], ours, c_out, config)
    return rows


def _encoder(config: UNetConfig, in_channels: int, naming: Naming) -> list[Row]:
    paths, names = _unet_paths(config, naming), _RES[naming]
    base, time = config.model_channels, config.time_dim
    rows = linear(paths["encoder.time.fc1"], "encoder.time.fc1", base, time)
    rows += linear(paths["encoder.time.fc2"], "encoder.time.fc2", time, time)
    rows += conv(paths["encoder.conv_in"], "encoder.conv_in", in_channels, base)
    c = base
    for level, mult in enumerate(config.channel_mult):
        for i in range(config.num_res_blocks):
            ours = f"encoder.down.{level}.stages.{i}"
            attend = config.attention_levels[level]
            rows += _stage(ours, paths, names, c, mult * base, config, attend)
            c = mult * base
        if level < len(config.channel_mult) - 1:
            ours = f"encoder.down.{level}.downsample"
            rows += conv(paths[ours], ours, c, c)
    rows += _stage("encoder.mid.stage", paths, names, c, c, config, True)
    return rows + _stage("encoder.mid.out", paths, names, c, c, config, False)


def unet_table(config: UNetConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a UNet, without prefixes."""
    paths, names = _unet_paths(config, naming), _RES[naming]
    rows = _encoder(config, config.in_channels, naming)
    skips = encoder_channels(config)
    c = skips[-1]
    levels = len(config.channel_mult)
    for up in range(levels):
        level = levels - 1 - up
        c_out = config.channel_mult[level] * config.model_channels
        for i in range(config.num_res_blocks + 1):
            ours = f"up.{up}.stages.{i}"
            attend = config.attention_levels[level]
            rows += _stage(ours, paths, names, c + skips.pop(), c_out, config, attend)
            c = c_out
        if level > 0:
            rows += conv(paths[f"up.{up}.upsample"], f"up.{up}.upsample", c, c)
    rows += norm(paths["norm_out"], "norm_out", c)
    return rows + conv(paths["conv_out"], "conv_out", c, config.out_channels)


def control_table(config: UNetConfig) -> list[Row]:
    """Table of a ControlNet in LDM naming, without prefixes."""
    rows = _encoder(config, 2 * config.in_channels, "ldm")
    channels = encoder_channels(config)
    for i, c in enumerate(channels):
        rows += conv(f"zero_convs.{i}.0", f"zero_convs.{i}", c, c, 1)
    return rows + conv("middle_block_out.0", "zero_mid", channels[-1], channels[-1], 1)
