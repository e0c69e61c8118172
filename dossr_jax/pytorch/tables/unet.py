"""Tables of the UNet and of the ControlNet, which has the UNet's encoder."""

from __future__ import annotations

from dossr_jax.config import UNetConfig
from dossr_jax.models.unet import encoder_channels
from dossr_jax.pytorch.tables.rows import Naming, Row, conv, linear, norm, res

# PyTorch's names of the layers of a residual block, where they differ from ours.
_RES = {
    "ldm": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
    "diffusers": {"time": "time_emb_proj", "shortcut": "conv_shortcut"},
}


def _paths(config: UNetConfig, naming: Naming) -> dict[str, str]:
    """Map our blocks to PyTorch's. LDM numbers the blocks of all levels through."""
    paths = {  # ours: LDM's and diffusers'
        "encoder.time.fc1": ("time_embed.0", "time_embedding.linear_1"),
        "encoder.time.fc2": ("time_embed.2", "time_embedding.linear_2"),
        "encoder.conv_in": ("input_blocks.0.0", "conv_in"),
        "encoder.mid.stage.res": ("middle_block.0", "mid_block.resnets.0"),
        "encoder.mid.stage.transformer": ("middle_block.1", "mid_block.attentions.0"),
        "encoder.mid.out.res": ("middle_block.2", "mid_block.resnets.1"),
        "norm_out": ("out.0", "conv_norm_out"),
        "conv_out": ("out.2", "conv_out"),
    }
    per_level = config.num_res_blocks + 1  # LDM's blocks in a level; the encoder's last resamples
    for i in range(len(config.channel_mult)):
        first = i * per_level
        attends_down, attends_up = config.attention_levels[i], config.attention_levels[-1 - i]
        for stage in range(per_level - 1):
            ours, ldm = f"encoder.down.{i}.stages.{stage}", f"input_blocks.{first + stage + 1}"
            paths[f"{ours}.res"] = (f"{ldm}.0", f"down_blocks.{i}.resnets.{stage}")
            if attends_down:
                paths[f"{ours}.transformer"] = (f"{ldm}.1", f"down_blocks.{i}.attentions.{stage}")
        ldm = f"input_blocks.{first + per_level}.0.op"
        paths[f"encoder.down.{i}.downsample"] = (ldm, f"down_blocks.{i}.downsamplers.0.conv")
        for stage in range(per_level):
            ours, ldm = f"up.{i}.stages.{stage}", f"output_blocks.{first + stage}"
            paths[f"{ours}.res"] = (f"{ldm}.0", f"up_blocks.{i}.resnets.{stage}")
            if attends_up:
                paths[f"{ours}.transformer"] = (f"{ldm}.1", f"up_blocks.{i}.attentions.{stage}")
        # The upsampler follows the level's last stage, in the same numbered block.
        ldm = f"output_blocks.{first + per_level - 1}.{2 if attends_up else 1}.conv"
        paths[f"up.{i}.upsample"] = (ldm, f"up_blocks.{i}.upsamplers.0.conv")
    return {ours: pair[0 if naming == "ldm" else 1] for ours, pair in paths.items()}


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


def _stage(
    ours: str, paths: dict[str, str], naming: Naming, c_in: int, c_out: int, config: UNetConfig
) -> list[Row]:
    rows = res(paths[f"{ours}.res"], f"{ours}.res", _RES[naming], c_in, c_out, config.time_dim)
    ours = f"{ours}.transformer"
    return rows + (_transformer(paths[ours], ours, c_out, config) if ours in paths else [])


def _encoder(config: UNetConfig, in_channels: int, naming: Naming) -> list[Row]:
    paths = _paths(config, naming)
    base, time = config.model_channels, config.time_dim
    rows = linear(paths["encoder.time.fc1"], "encoder.time.fc1", base, time)
    rows += linear(paths["encoder.time.fc2"], "encoder.time.fc2", time, time)
    rows += conv(paths["encoder.conv_in"], "encoder.conv_in", in_channels, base)
    c = base
    for level, mult in enumerate(config.channel_mult):
        for i in range(config.num_res_blocks):
            rows += _stage(
                f"encoder.down.{level}.stages.{i}", paths, naming, c, mult * base, config
            )
            c = mult * base
        if level < len(config.channel_mult) - 1:
            ours = f"encoder.down.{level}.downsample"
            rows += conv(paths[ours], ours, c, c)
    rows += _stage("encoder.mid.stage", paths, naming, c, c, config)
    return rows + _stage("encoder.mid.out", paths, naming, c, c, config)


def unet_table(config: UNetConfig, naming: Naming = "ldm") -> list[Row]:
    """List the rows of a UNet, without prefixes."""
    paths = _paths(config, naming)
    rows = _encoder(config, config.in_channels, naming)
    skips = encoder_channels(config)
    c = skips[-1]
    for up, mult in enumerate(reversed(config.channel_mult)):
        c_out = mult * config.model_channels
        for i in range(config.num_res_blocks + 1):
            ours = f"up.{up}.stages.{i}"
            rows += _stage(ours, paths, naming, c + skips.pop(), c_out, config)
            c = c_out
        if up < len(config.channel_mult) - 1:
            rows += conv(paths[f"up.{up}.upsample"], f"up.{up}.upsample", c, c)
    rows += norm(paths["norm_out"], "norm_out", c)
    return rows + conv(paths["conv_out"], "conv_out", c, config.out_channels)


def control_table(config: UNetConfig, naming: Naming = "ldm") -> list[Row]:
    """List the rows of a ControlNet, without prefixes.

    Its first convolution sees the hint, too, in both namings; diffusers' own modules embed it apart
    (dossr_jax.systems.dossr.diffusers.hint).
    """
    rows = _encoder(config, 2 * config.in_channels, naming)
    channels = encoder_channels(config)
    ldm = naming == "ldm"
    for i, c in enumerate(channels):
        name = f"zero_convs.{i}.0" if ldm else f"controlnet_down_blocks.{i}"
        rows += conv(name, f"zero_convs.{i}", c, c, 1)
    name = "middle_block_out.0" if ldm else "controlnet_mid_block"
    return rows + conv(name, "zero_mid", channels[-1], channels[-1], 1)
