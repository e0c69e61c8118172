"""Table of ResShift's keys, and its configuration from them or from a YAML mapping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from dossr_jax.pytorch.infer import Settings, config_errors, count, infer_vae
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables.rows import Row, conv, linear, norm, res, with_prefix
from dossr_jax.pytorch.tables.vae import vae_table
from dossr_jax.pytorch.tables.windows import WINDOW_BUFFERS, pointwise, window_block
from dossr_jax.systems.resshift.config import (
    ResShiftConfig,
    ResShiftProcess,
    SwinUNetConfig,
    VQConfig,
    published_sampler,
)
from dossr_jax.systems.resshift.networks import decoder_inputs, encoder_inputs

UNET_PREFIX = "unet."
VQ_PREFIX = "autoencoder."
# Keys to drop before the table applies, after the configuration is read off them.
BUFFERS = WINDOW_BUFFERS

# What published checkpoints were trained for, which their keys do not tell.
PROCESSES = {
    "s15": ResShiftProcess(steps=15, min_noise=0.04),
    "s4": ResShiftProcess(steps=4, min_noise=0.2),
    "sinsr": ResShiftProcess(steps=15, min_noise=0.04, spacing="trailing"),
}

# PyTorch's names of the layers of a residual block, but for the time's.
_RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}


def resshift_table(config: ResShiftConfig) -> list[Row]:
    """List the rows of UNet and autoencoder behind their prefixes, without buffers."""
    rows = with_prefix(swin_unet_table(config.unet), UNET_PREFIX, "unet.")
    return rows + with_prefix(vq_table(config.vq), VQ_PREFIX, "vq.")


def swin_unet_table(config: SwinUNetConfig) -> list[Row]:
    """List the rows of a UNet, without prefixes. PyTorch numbers the blocks of all levels through.

    In PyTorch the convolution to the next level down is a block, the one up ends the last block.
    """
    base, time, widths = config.model_channels, config.time_dim, config.widths
    rows = linear("time_embed.0", "time.fc1", base, time)
    rows += linear("time_embed.2", "time.fc2", time, time)
    rows += conv("input_blocks.0.0", "conv_in", config.in_channels + config.lq_channels, base)
    n = 1
    for level, inputs in enumerate(encoder_inputs(config)):
        for i, c_in in enumerate(inputs):
            torch, ours = f"input_blocks.{n}", f"down.{level}.stages.{i}"
            rows += _stage(torch, ours, c_in, widths[level], config, swin=i == 0)
            n += 1
        if level < len(widths) - 1:
            c = widths[level]
            rows += conv(f"input_blocks.{n}.0.op", f"down.{level}.resample", c, c)
            n += 1
    c = widths[-1]
    rows += _stage("middle_block", "mid.stage", c, c, config, swin=True)
    rows += _res("middle_block.2", "mid.out.res", c, c, config)
    n = 0
    for up, inputs in enumerate(decoder_inputs(config)):
        c = widths[-1 - up]
        for i, c_in in enumerate(inputs):
            torch, ours = f"output_blocks.{n}", f"up.{up}.stages.{i}"
            rows += _stage(torch, ours, c_in, c, config, swin=i == 0)
            n += 1
        if up < len(widths) - 1:
            rows += conv(f"output_blocks.{n - 1}.1.conv", f"up.{up}.resample", c, c)
    rows += norm("out.0", "norm_out", c)
    return rows + conv("out.2", "conv_out", c, config.in_channels)


def _stage(
    torch: str, ours: str, c_in: int, c_out: int, config: SwinUNetConfig, *, swin: bool
) -> list[Row]:
    rows = _res(f"{torch}.0", f"{ours}.res", c_in, c_out, config)
    return rows + (_swin(f"{torch}.1", f"{ours}.swin", c_out, config) if swin else [])


def _res(torch: str, ours: str, c_in: int, c_out: int, config: SwinUNetConfig) -> list[Row]:
    # A scale and a shift per channel.
    rows = linear(f"{torch}.emb_layers.1", f"{ours}.time", config.time_dim, 2 * c_out)
    return rows + res(torch, ours, _RES, c_in, c_out)


def _swin(torch: str, ours: str, channels: int, config: SwinUNetConfig) -> list[Row]:
    dim = config.swin_embed_dim
    rows = pointwise(f"{torch}.patch_embed.proj", f"{ours}.proj_in", channels, dim)
    for i in range(config.swin_depth):
        rows += window_block(
            f"{torch}.blocks.{i}",
            f"{ours}.blocks.{i}",
            dim,
            heads=dim // config.head_dim,
            window=config.window,
            mlp_ratio=config.mlp_ratio,
            conv_mlp=True,
        )
    return rows + pointwise(f"{torch}.patch_unembed.proj", f"{ours}.proj_out", dim, channels)


def vq_table(config: VQConfig) -> list[Row]:
    """List the rows of an autoencoder, without prefixes."""
    rows = vae_table(config)
    return rows + [
        Row("quantize.embedding.weight", "codebook", "copy", (config.codes, config.z_channels))
    ]


def infer_resshift(
    state: State, process: ResShiftProcess | None = None, steps: int | None = None
) -> ResShiftConfig:
    """Infer the configuration of a ResShift from its keys, with prefixes.

    Args:
      state: UNet and autoencoder. Cached masks among the buffers tell the size of the training
        latents, which decides which levels shift their windows; without them it is the default.
      process: what it was trained for, which keys do not tell; the journal model's where None.
      steps: of its sampler; all of the process where None.

    Raises:
      UserError: the keys are not those of a ResShift.
    """
    process = process or ResShiftProcess()
    with config_errors(state.source, "this is no ResShift of the kind that is supported"):
        return ResShiftConfig(
            unet=infer_swin_unet(state.below(UNET_PREFIX)),
            vq=infer_vq(state.below(VQ_PREFIX)),
            process=process,
            sampler=published_sampler(steps or process.steps),
        )


def infer_swin_unet(state: State) -> SwinUNetConfig:
    """Infer the configuration of a UNet from its keys (without prefix).

    Raises:
      UserError, ValueError: the keys are not those of such a UNet.
    """
    base, channels = state.shape("input_blocks.0.0.weight")[:2]
    out_channels = state.shape("out.2.weight")[0]
    levels = list(_levels(state))
    layer = "input_blocks.1.1"
    block = f"{layer}.blocks.0"
    dim = state.shape(f"{layer}.patch_embed.proj.weight")[0]
    entries, heads = state.shape(f"{block}.attn.relative_position_bias_table")
    window = (math.isqrt(entries) + 1) // 2
    mask = f"{layer}.blocks.1.attn_mask"
    image_size = SwinUNetConfig().image_size
    if mask in state.tensors:
        image_size = math.isqrt(state.shape(mask)[0]) * window
    return SwinUNetConfig(
        image_size=image_size,
        in_channels=out_channels,
        lq_channels=channels - out_channels,
        model_channels=base,
        channel_mult=tuple(width // base for width, _ in levels),
        num_res_blocks=tuple(blocks for _, blocks in levels),
        swin_embed_dim=dim,
        swin_depth=count(state, f"{layer}.blocks.%d."),
        head_dim=dim // heads,
        window=window,
        mlp_ratio=state.shape(f"{block}.mlp.fc1.weight")[0] // dim,
    )


def _levels(state: State) -> Iterator[tuple[int, int]]:
    """(channels, residual blocks) of every level of the encoder."""
    width, blocks = 0, 0
    for n in range(1, count(state, "input_blocks.%d.")):
        if f"input_blocks.{n}.0.op.weight" in state.tensors:
            yield width, blocks
            blocks = 0
            continue
        width = state.shape(f"input_blocks.{n}.0.out_layers.3.weight")[0]
        blocks += 1
    yield width, blocks


def infer_vq(state: State) -> VQConfig:
    """Infer the configuration of an autoencoder from its keys (without prefix).

    Raises:
      UserError, ValueError: the keys are not those of a VQ autoencoder.
    """
    codes = state.shape("quantize.embedding.weight")[0]
    fields = dataclasses.asdict(infer_vae(state))
    del fields["scale_factor"]  # Stable Diffusion's; the keys do not tell
    return VQConfig(**fields, codes=codes)


def config_from_yaml(settings: Settings, variant: str = "diffusion_v3") -> ResShiftConfig:
    """Read the arguments of PyTorch's networks and of a process, from a YAML file.

    Args:
      settings: mappings `model`, `autoencoder` and `variant`.
      variant: name of the process: of the conference model (15 steps) or of the journal's (4).

    Raises:
      UserError: a field is missing or wrong, or belongs to a network that this project lacks.
    """
    with config_errors(str(settings.path), "correct the file"):
        process = _yaml_process(settings.at(variant))
        return ResShiftConfig(
            unet=_yaml_unet(settings.at("model", "params")),
            vq=_yaml_vq(settings.at("autoencoder", "params")),
            process=process,
            sampler=published_sampler(process.steps),
        )


def _require(settings: Settings, **values: Any) -> None:
    for name, value in values.items():
        if settings.value(name) != value:
            settings.fail(name, f"only {value!r} is supported")


def _yaml_unet(settings: Settings) -> SwinUNetConfig:
    _require(
        settings,
        out_channels=settings.value("in_channels"),
        lq_size=settings.value("image_size"),  # a larger one goes through a feature extractor
        cond_lq=True,
        conv_resample=True,
        use_scale_shift_norm=True,
        resblock_updown=False,
    )
    mults = tuple(settings.value("channel_mult"))
    blocks = settings.value("num_res_blocks")
    size = settings.value("image_size")
    # Despite the name these are sides of maps.
    _require(settings, attention_resolutions=[size >> level for level in range(len(mults))])
    return SwinUNetConfig(
        image_size=size,
        in_channels=settings.value("in_channels"),
        model_channels=settings.value("model_channels"),
        channel_mult=mults,
        num_res_blocks=(blocks,) * len(mults) if isinstance(blocks, int) else tuple(blocks),
        swin_embed_dim=settings.value("swin_embed_dim"),
        swin_depth=settings.value("swin_depth"),
        head_dim=settings.value("num_head_channels"),
        window=settings.value("window_size"),
        mlp_ratio=settings.value("mlp_ratio"),
    )


def _yaml_vq(settings: Settings) -> VQConfig:
    network = settings.at("ddconfig")
    _require(network, double_z=False, attn_resolutions=[])
    _require(network, out_ch=network.value("in_channels"))
    _require(settings, embed_dim=network.value("z_channels"))
    return VQConfig(
        in_channels=network.value("in_channels"),
        z_channels=network.value("z_channels"),
        base_channels=network.value("ch"),
        channel_mult=tuple(network.value("ch_mult")),
        num_res_blocks=network.value("num_res_blocks"),
        codes=settings.value("n_embed"),
    )


def _yaml_process(settings: Settings) -> ResShiftProcess:
    _require(settings, schedule_name="exponential", predict_type="xstart", scale_factor=1.0)
    _require(settings, normalize_input=True, latent_flag=True, timestep_respacing=None)
    return ResShiftProcess(
        steps=settings.value("steps"),
        kappa=settings.value("kappa"),
        power=settings.at("schedule_kwargs").value("power"),
        eta_end=settings.value("etas_end"),
        min_noise=settings.value("min_noise_level"),
    )
