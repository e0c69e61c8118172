"""Table of SwinIR's keys, and its configuration from them or from a YAML mapping."""

from __future__ import annotations

import math

from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings, config_errors, count
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables.rows import Row, conv, norm
from dossr_jax.pytorch.tables.windows import WINDOW_BUFFERS, window_block
from dossr_jax.systems.swinir.config import Residual, SwinIRConfig
from dossr_jax.systems.swinir.networks import HEAD_FEATURES, IMAGE_CHANNELS

# Keys to drop before the table applies.
BUFFERS = WINDOW_BUFFERS

_UPS = 3
_HEAD = "nearest+conv"


def swinir_table(config: SwinIRConfig) -> list[Row]:
    """List the rows of a SwinIR, without prefixes and buffers."""
    dim = config.embed_dim
    # Folding is a module of its own in PyTorch, in front of the convolution.
    first = "conv_first" if config.unshuffle == 1 else "conv_first.1"
    rows = conv(first, "conv_first", IMAGE_CHANNELS * config.unshuffle**2, dim)
    rows += norm("patch_embed.norm", "norm_in", dim)
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            rows += window_block(
                f"layers.{i}.residual_group.blocks.{j}",
                f"groups.{i}.blocks.{j}",
                dim,
                heads=config.heads,
                window=config.window,
                mlp_ratio=config.mlp_ratio,
            )
        rows += _residual(f"layers.{i}.conv", f"groups.{i}.conv", dim, config.residual)
    rows += norm("norm", "norm_out", dim)
    rows += _residual("conv_after_body", "conv_body", dim, config.residual)
    rows += conv("conv_before_upsample.0", "conv_head", dim, HEAD_FEATURES)
    for i in range(config.scale.bit_length() - 1):
        rows += conv(f"conv_up{i + 1}", f"ups.{i}", HEAD_FEATURES, HEAD_FEATURES)
    rows += conv("conv_hr", "conv_hr", HEAD_FEATURES, HEAD_FEATURES)
    return rows + conv("conv_last", "conv_last", HEAD_FEATURES, IMAGE_CHANNELS)


def _residual(torch: str, ours: str, dim: int, residual: Residual) -> list[Row]:
    if residual == "1conv":
        return conv(torch, ours, dim, dim)
    rows = conv(f"{torch}.0", f"{ours}.conv1", dim, dim // 4)
    rows += conv(f"{torch}.2", f"{ours}.conv2", dim // 4, dim // 4, 1)
    return rows + conv(f"{torch}.4", f"{ours}.conv3", dim // 4, dim)


def infer_swinir(state: State) -> SwinIRConfig:
    """Infer the configuration of a SwinIR from its keys (without prefix).

    Shapes do not tell the range of the images, which is 1 in every model with this head.

    Raises:
      UserError: the keys are not those of a SwinIR, or it has another head.
    """
    folded = "conv_first.1.weight"
    first = folded if folded in state.tensors else "conv_first.weight"
    block = "layers.0.residual_group.blocks.0"
    with config_errors(state.source, "this SwinIR is not supported"):
        dim, in_channels = state.shape(first)[:2]
        depths = tuple(
            count(state, f"layers.{i}.residual_group.blocks.%d.")
            for i in range(count(state, "layers.%d."))
        )
        entries, heads = state.shape(f"{block}.attn.relative_position_bias_table")
        ups = sum(state.has(f"conv_up{i + 1}.") for i in range(_UPS))
        if not ups:
            raise UserError(
                f"{state.source}: a SwinIR with another head than {_HEAD} (it has no conv_up1); "
                "only the models for real-world images are supported"
            )
        return SwinIRConfig(
            embed_dim=dim,
            depths=depths,
            heads=heads,
            window=(math.isqrt(entries) + 1) // 2,
            mlp_ratio=state.shape(f"{block}.mlp.fc1.weight")[0] // dim,
            residual="3conv" if state.has("conv_after_body.0.") else "1conv",
            scale=2**ups,
            unshuffle=math.isqrt(in_channels // IMAGE_CHANNELS),
        )


def config_from_yaml(settings: Settings) -> SwinIRConfig:
    """Read the arguments of a SwinIR in PyTorch, a mapping in a YAML file.

    Raises:
      UserError: a field is missing or wrong, or belongs to a network that this project lacks.
    """
    fixed = {
        "patch_size": 1,
        "in_chans": IMAGE_CHANNELS,
        "img_range": 1.0,
        "upsampler": _HEAD,
    }
    for name, value in fixed.items():
        if settings.value(name) != value:
            settings.fail(name, f"only {value} is supported")
    if len(set(settings.value("num_heads"))) != 1:
        settings.fail("num_heads", "the same number for every group is needed")
    if settings.value("img_size") <= settings.value("window_size"):
        settings.fail("img_size", "windows that never shift are not supported")
    with config_errors(str(settings.path), "correct the file"):
        return SwinIRConfig(
            embed_dim=settings.value("embed_dim"),
            depths=tuple(settings.value("depths")),
            heads=settings.value("num_heads")[0],
            window=settings.value("window_size"),
            mlp_ratio=settings.value("mlp_ratio"),
            residual=settings.value("resi_connection"),
            scale=settings.value("sf"),
            unshuffle=settings.get("unshuffle_scale", 1) if settings.get("unshuffle", False) else 1,
        )
