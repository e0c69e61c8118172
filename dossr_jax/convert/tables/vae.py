"""Tables of the autoencoder."""

from __future__ import annotations

from dossr_jax.config import VAEConfig
from dossr_jax.convert.tables.rows import Naming, Row, conv, linear, norm, res, with_prefix

_RES = {
    "ldm": {
        "norm1": "norm1",
        "conv1": "conv1",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "nin_shortcut",
    },
    "diffusers": {
        "norm1": "norm1",
        "conv1": "conv1",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "conv_shortcut",
    },
}
_ATTENTION = {
    "ldm": {"norm": "norm", "q": "q", "k": "k", "v": "v", "proj_out": "proj_out"},
    "diffusers": {
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    },
}


def _mid(torch: str, channels: int, naming: Naming) -> list[Row]:
    first, attn, second = {
        "ldm": ("mid.block_1", "mid.attn_1", "mid.block_2"),
        "diffusers": ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    }[naming]
    names = _ATTENTION[naming]
    rows = res(f"{torch}.{first}", "mid.res1", _RES[naming], channels, channels)
    rows += norm(f"{torch}.{attn}.{names['norm']}", "mid.attn.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        pair = (f"{torch}.{attn}.{names[name]}", f"mid.attn.{name}")
        if naming == "diffusers":
            rows += linear(*pair, channels, channels)
            continue
        shape = (channels, channels, 1, 1)
        rows.append(Row(f"{pair[0]}.weight", f"{pair[1]}.kernel", "conv1x1_linear", shape))
        rows.append(Row(f"{pair[0]}.bias", f"{pair[1]}.bias", "copy", (channels,)))
    return rows + res(f"{torch}.{second}", "mid.res2", _RES[naming], channels, channels)


def _ends(torch: str, c: int, c_out: int, naming: Naming) -> list[Row]:
    name = {"ldm": "norm_out", "diffusers": "conv_norm_out"}[naming]
    rows = norm(f"{torch}.{name}", "norm_out", c)
    return rows + conv(f"{torch}.conv_out", "conv_out", c, c_out)


def vae_encoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE encoder with its quantisation convolution; our names have no prefix."""
    c = config.base_channels
    rows = conv("encoder.conv_in", "conv_in", config.in_channels * config.patch_size**2, c)
    for level, mult in enumerate(config.channel_mult):
        block, resample = {
            "ldm": (f"encoder.down.{level}.block", f"encoder.down.{level}.downsample.conv"),
            "diffusers": (
                f"encoder.down_blocks.{level}.resnets",
                f"encoder.down_blocks.{level}.downsamplers.0.conv",
            ),
        }[naming]
        for i in range(config.num_res_blocks):
            c_out = mult * config.base_channels
            rows += res(f"{block}.{i}", f"down.{level}.blocks.{i}", _RES[naming], c, c_out)
            c = c_out
        if level < len(config.channel_mult) - 1:
            rows += conv(resample, f"down.{level}.resample", c, c)
    z = 2 * config.z_channels
    rows += _mid("encoder", c, naming) + _ends("encoder", c, z, naming)
    return rows + conv("quant_conv", "quant_conv", z, z, 1)


def vae_decoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE decoder with its first 1x1 convolution; our names have no prefix."""
    widths = [m * config.base_channels for m in reversed(config.channel_mult)]
    c = widths[0]
    rows = conv("post_quant_conv", "post_quant_conv", config.z_channels, config.z_channels, 1)
    rows += conv("decoder.conv_in", "conv_in", config.z_channels, c)
    rows += _mid("decoder", c, naming)
    for up, width in enumerate(widths):
        level = len(widths) - 1 - up  # LDM numbers the decoder's levels by resolution
        block, resample = {
            "ldm": (f"decoder.up.{level}.block", f"decoder.up.{level}.upsample.conv"),
            "diffusers": (
                f"decoder.up_blocks.{up}.resnets",
                f"decoder.up_blocks.{up}.upsamplers.0.conv",
            ),
        }[naming]
        for i in range(config.num_res_blocks + 1):
            rows += res(f"{block}.{i}", f"up.{up}.blocks.{i}", _RES[naming], c, width)
            c = width
        if level > 0:
            rows += conv(resample, f"up.{up}.resample", c, c)
    out = config.in_channels * config.patch_size**2
    return rows + _ends("decoder", c, out, naming)


def vae_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE, without prefixes."""
    return with_prefix(vae_encoder_table(config, naming), "", "encoder.") + with_prefix(
        vae_decoder_table(config, naming), "", "decoder."
    )
