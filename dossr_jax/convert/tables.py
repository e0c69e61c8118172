"""Tables from PyTorch keys to ours, generated from a configuration.

A table is a list of :class:`Row`. Our modules are walked once; what differs between the LDM naming
(the release, SD 2.1's single file) and the diffusers naming is a mapping of block paths and the
names of the layers inside a block. docs/porting.md shows the same side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from dossr_jax.config import DoSSRConfig, RRDBConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.models.unet import encoder_channels

Naming = Literal["ldm", "diffusers"]
Paths = Mapping[str, str]


class Row(NamedTuple):
    """One PyTorch tensor and where it goes.

    `transform`: "copy"; "linear" (o, i) -> (i, o); "conv" (o, i, h, w) -> (h, w, i, o);
    "conv1x1_linear" (o, i, 1, 1) -> (i, o). `shape` is PyTorch's. `part` 0, 1, 2 where our tensor
    is three of PyTorch's side by side along the last axis.
    """

    torch: str
    ours: str
    transform: Literal["copy", "linear", "conv", "conv1x1_linear"]
    shape: tuple[int, ...]
    part: int | None = None


_UNET_RES = {
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
_VAE_RES = {
    "ldm": {
        "norm1": "norm1",
        "conv1": "conv1",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "nin_shortcut",
    },
    "diffusers": _UNET_RES["diffusers"],
}
_VAE_ATTENTION = {
    "ldm": {"norm": "norm", "q": "q", "k": "k", "v": "v", "proj_out": "proj_out"},
    "diffusers": {
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    },
}


def _norm(torch: str, ours: str, channels: int) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"{ours}.scale", "copy", (channels,)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (channels,)),
    ]


def _conv(torch: str, ours: str, c_in: int, c_out: int, size: int = 3) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"{ours}.kernel", "conv", (c_out, c_in, size, size)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (c_out,)),
    ]


def _linear(
    torch: str, ours: str, d_in: int, d_out: int, *, bias: bool = True, part: int | None = None
) -> list[Row]:
    rows = [Row(f"{torch}.weight", f"{ours}.kernel", "linear", (d_out, d_in), part)]
    return rows + [Row(f"{torch}.bias", f"{ours}.bias", "copy", (d_out,), part)] * bias


def _res(
    torch: str, ours: str, names: Paths, c_in: int, c_out: int, time_dim: int | None = None
) -> list[Row]:
    def pair(name: str) -> tuple[str, str]:
        return f"{torch}.{names[name]}", f"{ours}.{name}"

    rows = _norm(*pair("norm1"), c_in) + _conv(*pair("conv1"), c_in, c_out)
    if time_dim is not None:
        rows += _linear(*pair("time"), time_dim, c_out)
    rows += _norm(*pair("norm2"), c_out) + _conv(*pair("conv2"), c_out, c_out)
    return rows + (_conv(*pair("shortcut"), c_in, c_out, 1) if c_in != c_out else [])


def _transformer(torch: str, ours: str, channels: int, config: UNetConfig) -> list[Row]:
    # The names inside a SpatialTransformer are the same in LDM and in diffusers.
    rows = _norm(f"{torch}.norm", f"{ours}.norm", channels)
    rows += _linear(f"{torch}.proj_in", f"{ours}.proj_in", channels, channels)
    for i in range(config.transformer_depth):
        theirs, block = f"{torch}.transformer_blocks.{i}", f"{ours}.blocks.{i}"
        for name, d_context in (("attn1", channels), ("attn2", config.context_dim)):
            a, b = f"{theirs}.{name}", f"{block}.{name}"
            rows += _linear(f"{a}.to_q", f"{b}.to_q", channels, channels, bias=False)
            rows += _linear(f"{a}.to_k", f"{b}.to_k", d_context, channels, bias=False)
            rows += _linear(f"{a}.to_v", f"{b}.to_v", d_context, channels, bias=False)
            rows += _linear(f"{a}.to_out.0", f"{b}.to_out", channels, channels)
        rows += _linear(f"{theirs}.ff.net.0.proj", f"{block}.ff.fc1", channels, 8 * channels)
        rows += _linear(f"{theirs}.ff.net.2", f"{block}.ff.fc2", 4 * channels, channels)
        for name in ("norm1", "norm2", "norm3"):
            rows += _norm(f"{theirs}.{name}", f"{block}.{name}", channels)
    return rows + _linear(f"{torch}.proj_out", f"{ours}.proj_out", channels, channels)


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
    ours: str, paths: Paths, names: Paths, c_in: int, c_out: int, config: UNetConfig, attend: bool
) -> list[Row]:
    rows = _res(paths[f"{ours}.res"], f"{ours}.res", names, c_in, c_out, config.time_dim)
    if attend:
        ours = f"{ours}.transformer"
        rows += _transformer(paths[ours], ours, c_out, config)
    return rows


def _encoder(config: UNetConfig, in_channels: int, naming: Naming) -> list[Row]:
    paths, names = _unet_paths(config, naming), _UNET_RES[naming]
    base, time = config.model_channels, config.time_dim
    rows = _linear(paths["encoder.time.fc1"], "encoder.time.fc1", base, time)
    rows += _linear(paths["encoder.time.fc2"], "encoder.time.fc2", time, time)
    rows += _conv(paths["encoder.conv_in"], "encoder.conv_in", in_channels, base)
    c = base
    for level, mult in enumerate(config.channel_mult):
        for i in range(config.num_res_blocks):
            ours = f"encoder.down.{level}.stages.{i}"
            attend = config.attention_levels[level]
            rows += _stage(ours, paths, names, c, mult * base, config, attend)
            c = mult * base
        if level < len(config.channel_mult) - 1:
            ours = f"encoder.down.{level}.downsample"
            rows += _conv(paths[ours], ours, c, c)
    rows += _stage("encoder.mid.stage", paths, names, c, c, config, True)
    return rows + _stage("encoder.mid.out", paths, names, c, c, config, False)


def unet_table(config: UNetConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a UNet, without prefixes."""
    paths, names = _unet_paths(config, naming), _UNET_RES[naming]
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
            rows += _conv(paths[f"up.{up}.upsample"], f"up.{up}.upsample", c, c)
    rows += _norm(paths["norm_out"], "norm_out", c)
    return rows + _conv(paths["conv_out"], "conv_out", c, config.out_channels)


def control_table(config: UNetConfig) -> list[Row]:
    """Table of a ControlNet in LDM naming, without prefixes."""
    rows = _encoder(config, 2 * config.in_channels, "ldm")
    channels = encoder_channels(config)
    for i, c in enumerate(channels):
        rows += _conv(f"zero_convs.{i}.0", f"zero_convs.{i}", c, c, 1)
    return rows + _conv("middle_block_out.0", "zero_mid", channels[-1], channels[-1], 1)


def _vae_mid(torch: str, channels: int, naming: Naming) -> list[Row]:
    first, attn, second = {
        "ldm": ("mid.block_1", "mid.attn_1", "mid.block_2"),
        "diffusers": ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    }[naming]
    names = _VAE_ATTENTION[naming]
    rows = _res(f"{torch}.{first}", "mid.res1", _VAE_RES[naming], channels, channels)
    rows += _norm(f"{torch}.{attn}.{names['norm']}", "mid.attn.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        pair = (f"{torch}.{attn}.{names[name]}", f"mid.attn.{name}")
        if naming == "diffusers":
            rows += _linear(*pair, channels, channels)
            continue
        shape = (channels, channels, 1, 1)
        rows.append(Row(f"{pair[0]}.weight", f"{pair[1]}.kernel", "conv1x1_linear", shape))
        rows.append(Row(f"{pair[0]}.bias", f"{pair[1]}.bias", "copy", (channels,)))
    return rows + _res(f"{torch}.{second}", "mid.res2", _VAE_RES[naming], channels, channels)


def _vae_ends(torch: str, c: int, c_out: int, naming: Naming) -> list[Row]:
    norm = {"ldm": "norm_out", "diffusers": "conv_norm_out"}[naming]
    rows = _norm(f"{torch}.{norm}", "norm_out", c)
    return rows + _conv(f"{torch}.conv_out", "conv_out", c, c_out)


def vae_encoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE encoder with its quantisation convolution; our names have no prefix."""
    c = config.base_channels
    rows = _conv("encoder.conv_in", "conv_in", config.in_channels * config.patch_size**2, c)
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
            rows += _res(f"{block}.{i}", f"down.{level}.blocks.{i}", _VAE_RES[naming], c, c_out)
            c = c_out
        if level < len(config.channel_mult) - 1:
            rows += _conv(resample, f"down.{level}.resample", c, c)
    z = 2 * config.z_channels
    rows += _vae_mid("encoder", c, naming) + _vae_ends("encoder", c, z, naming)
    return rows + _conv("quant_conv", "quant_conv", z, z, 1)


def vae_decoder_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE decoder with its first 1x1 convolution; our names have no prefix."""
    widths = [m * config.base_channels for m in reversed(config.channel_mult)]
    c = widths[0]
    rows = _conv("post_quant_conv", "post_quant_conv", config.z_channels, config.z_channels, 1)
    rows += _conv("decoder.conv_in", "conv_in", config.z_channels, c)
    rows += _vae_mid("decoder", c, naming)
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
            rows += _res(f"{block}.{i}", f"up.{up}.blocks.{i}", _VAE_RES[naming], c, width)
            c = width
        if level > 0:
            rows += _conv(resample, f"up.{up}.resample", c, c)
    out = config.in_channels * config.patch_size**2
    return rows + _vae_ends("decoder", c, out, naming)


def vae_table(config: VAEConfig, naming: Naming = "ldm") -> list[Row]:
    """Table of a VAE, without prefixes."""
    return with_prefix(vae_encoder_table(config, naming), "", "encoder.") + with_prefix(
        vae_decoder_table(config, naming), "", "decoder."
    )


def rrdb_table(config: RRDBConfig) -> list[Row]:
    """Table of an RRDBNet under its newer names (body, conv_body, conv_up1, conv_hr)."""
    features, growth = config.num_features, config.growth
    rows = _conv("conv_first", "conv_first", config.in_channels * config.fold**2, features)
    for n in range(config.num_blocks):
        for d in range(3):
            for i in range(5):
                c_out = growth if i < 4 else features
                rows += _conv(
                    f"body.{n}.rdb{d + 1}.conv{i + 1}",
                    f"body.{n}.dense.{d}.convs.{i}",
                    features + i * growth,
                    c_out,
                )
    rows += _conv("conv_body", "conv_body", features, features)
    for name in ("conv_up1", "conv_up2", "conv_hr"):
        rows += _conv(name, name, features, features)
    return rows + _conv("conv_last", "conv_last", features, config.out_channels)


def text_table(config: TextConfig) -> list[Row]:
    """Table of a text tower under open_clip's names, which fuse q, k and v as we do."""
    width = config.width
    rows = [
        Row(
            "token_embedding.weight",
            "token_embedding.embedding",
            "copy",
            (config.vocab_size, width),
        ),
        Row("positional_embedding", "position_embedding", "copy", (config.context_length, width)),
    ]
    for i in range(config.layers):
        theirs, ours = f"transformer.resblocks.{i}", f"blocks.{i}"
        rows += _norm(f"{theirs}.ln_1", f"{ours}.norm1", width)
        rows += [
            Row(
                f"{theirs}.attn.in_proj_weight", f"{ours}.qkv.kernel", "linear", (3 * width, width)
            ),
            Row(f"{theirs}.attn.in_proj_bias", f"{ours}.qkv.bias", "copy", (3 * width,)),
        ]
        rows += _linear(f"{theirs}.attn.out_proj", f"{ours}.out", width, width)
        rows += _norm(f"{theirs}.ln_2", f"{ours}.norm2", width)
        rows += _linear(f"{theirs}.mlp.c_fc", f"{ours}.expand", width, 4 * width)
        rows += _linear(f"{theirs}.mlp.c_proj", f"{ours}.contract", 4 * width, width)
    rows += _norm("ln_final", "norm_out", width)
    if config.projection_dim:
        shape = (width, config.projection_dim)
        rows += [
            Row("text_projection", "text_projection", "copy", shape),
            Row("logit_scale", "logit_scale", "copy", ()),
        ]
    return rows


def transformers_text_table(config: TextConfig) -> list[Row]:
    """Table of a text tower under transformers' names (without the "text_model." in front)."""
    width = config.width
    rows = [
        Row(
            "embeddings.token_embedding.weight",
            "token_embedding.embedding",
            "copy",
            (config.vocab_size, width),
        ),
        Row(
            "embeddings.position_embedding.weight",
            "position_embedding",
            "copy",
            (config.context_length, width),
        ),
    ]
    for i in range(config.layers):
        theirs, ours = f"encoder.layers.{i}", f"blocks.{i}"
        rows += _norm(f"{theirs}.layer_norm1", f"{ours}.norm1", width)
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows += _linear(f"{theirs}.self_attn.{name}", f"{ours}.qkv", width, width, part=part)
        rows += _linear(f"{theirs}.self_attn.out_proj", f"{ours}.out", width, width)
        rows += _norm(f"{theirs}.layer_norm2", f"{ours}.norm2", width)
        rows += _linear(f"{theirs}.mlp.fc1", f"{ours}.expand", width, 4 * width)
        rows += _linear(f"{theirs}.mlp.fc2", f"{ours}.contract", 4 * width, width)
    return rows + _norm("final_layer_norm", "norm_out", width)


def with_prefix(rows: Sequence[Row], torch: str, ours: str) -> list[Row]:
    """The same rows with something in front of both names."""
    return [row._replace(torch=torch + row.torch, ours=ours + row.ours) for row in rows]


UNET_PREFIX = "model.diffusion_model."
CONTROL_PREFIX = "control_model."
VAE_PREFIX = "first_stage_model."
HINT_PREFIX = "cond_encoder."
RRDB_PREFIX = "preprocess_model."
TEXT_PREFIX = "cond_stage_model.model."


def release_table(config: DoSSRConfig) -> list[Row]:
    """Table of a whole DoSSR checkpoint of the release, with its hint encoder as hint_encoder.*.

    A text tower is part of it where config.text says so; buffers are not.
    """
    rows = with_prefix(unet_table(config.unet), UNET_PREFIX, "unet.")
    rows += with_prefix(control_table(config.unet), CONTROL_PREFIX, "control.")
    rows += with_prefix(vae_table(config.vae), VAE_PREFIX, "vae.")
    rows += with_prefix(vae_encoder_table(config.vae), HINT_PREFIX, "hint_encoder.")
    rows += with_prefix(rrdb_table(config.rrdb), RRDB_PREFIX, "rrdb.")
    if config.text is not None:
        rows += with_prefix(text_table(config.text), TEXT_PREFIX, "text.")
    return rows
