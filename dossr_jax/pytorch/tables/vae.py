"""Tables of the autoencoder."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import VAEConfig
from dossr_jax.pytorch.tables.rows import Naming, Row, conv, linear, norm, res, with_prefix

# PyTorch's names where they differ from ours.
_RES = {"ldm": {"shortcut": "nin_shortcut"}, "diffusers": {"shortcut": "conv_shortcut"}}
_DIFFUSERS_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def _levels(
    side: Literal["down", "up"], c: int, widths: list[int], blocks: int, naming: Naming
) -> list[Row]:
    torch = {"down": "encoder", "up": "decoder"}[side]
    rows = []
    for i, width in enumerate(widths):
        level = i if side == "down" else len(widths) - 1 - i  # LDM numbers by resolution
        block, resample = {
            "ldm": (f"{side}.{level}.block", f"{side}.{level}.{side}sample.conv"),
            "diffusers": (f"{side}_blocks.{i}.resnets", f"{side}_blocks.{i}.{side}samplers.0.conv"),
        }[naming]
        for j in range(blocks):
            ours = f"{side}.{i}.blocks.{j}"
            rows += res(f"{torch}.{block}.{j}", ours, _RES[naming], c, width)
            c = width
        if i < len(widths) - 1:
            rows += conv(f"{torch}.{resample}", f"{side}.{i}.resample", c, c)
    return rows


def _mid(torch: str, channels: int, config: VAEConfig, naming: Naming) -> list[Row]:
    first, attn, second = {
        "ldm": ("mid.block_1", "mid.attn_1", "mid.block_2"),
        "diffusers": ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    }[naming]
    rows = res(f"{torch}.{first}", "mid.res1", _RES[naming], channels, channels)
    if config.mid_attention:
        rows += _attention(f"{torch}.{attn}", channels, naming)
    return rows + res(f"{torch}.{second}", "mid.res2", _RES[naming], channels, channels)


def _attention(torch: str, channels: int, naming: Naming) -> list[Row]:
    names = _DIFFUSERS_ATTENTION if naming == "diffusers" else {}
    rows = norm(f"{torch}.{names.get('norm', 'norm')}", "mid.attn.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        layer = linear(f"{torch}.{names.get(name, name)}", f"mid.attn.{name}", channels, channels)
        if naming == "ldm":
            shape = (channels, channels, 1, 1)
            layer[0] = layer[0]._replace(transform="conv1x1_linear", shape=shape)
        rows += layer
    return rows


def _ends(torch: str, c: int, c_out: int, naming: Naming) -> list[Row]:
    name = {"ldm": "norm_out", "diffusers": "conv_norm_out"}[naming]
    rows = norm(f"{torch}.{name}", "norm_out", c)
    return rows + conv(f"{torch}.conv_out", "conv_out", c, c_out)


def vae_encoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """List the rows of an encoder with its quantisation convolution; our names have no prefix."""
    base, z = config.base_channels, config.encoder_channels
    widths = [mult * base for mult in config.channel_mult]
    rows = conv("encoder.conv_in", "conv_in", config.in_channels * config.patch_size**2, base)
    rows += _levels("down", base, widths, config.num_res_blocks, naming)
    rows += _mid("encoder", widths[-1], config, naming) + _ends("encoder", widths[-1], z, naming)
    return rows + conv("quant_conv", "quant_conv", z, z, 1)


def vae_decoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """List the rows of a decoder with its first 1x1 convolution; our names have no prefix."""
    z = config.z_channels
    widths = [mult * config.base_channels for mult in reversed(config.channel_mult)]
    rows = conv("post_quant_conv", "post_quant_conv", z, z, 1)
    rows += conv("decoder.conv_in", "conv_in", z, widths[0])
    rows += _mid("decoder", widths[0], config, naming)
    rows += _levels("up", widths[0], widths, config.num_res_blocks + 1, naming)
    return rows + _ends("decoder", widths[-1], config.in_channels * config.patch_size**2, naming)


def vae_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """List the rows of a VAE, without prefixes."""
    return with_prefix(vae_encoder_table(config, naming), "", "encoder.") + with_prefix(
        vae_decoder_table(config, naming), "", "decoder."
    )
