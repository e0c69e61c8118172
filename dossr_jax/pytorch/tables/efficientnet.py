"""Table of EfficientNet-Lite0 as `efficientnet-lite-pytorch` names it."""

from __future__ import annotations

from dossr_jax.models.efficientnet import BLOCKS, STEM
from dossr_jax.pytorch.tables.rows import Row, linear

_HEAD = 1280
_CLASSES = 1000


def _layer(conv: str, norm: str, ours: str, shape: tuple[int, int, int, int]) -> list[Row]:
    """A convolution without bias, and the batch norm after it as `ours`.norm.*."""
    rows = [Row(f"{conv}.weight", f"{ours}.kernel", "conv", shape)]
    for name in ("weight", "bias", "running_mean", "running_var"):
        rows.append(Row(f"{norm}.{name}", f"{ours}.norm.{name}", "copy", shape[:1]))
    counter = "num_batches_tracked"
    return rows + [Row(f"{norm}.{counter}", f"{ours}.norm.{counter}", "copy", ())]


def efficientnet_table() -> list[Row]:
    """Table of the whole network, classifier included; batch norm is not folded yet."""
    rows = _layer("_conv_stem", "_bn0", "stem", (STEM, 3, 3, 3))
    for i, block in enumerate(BLOCKS):
        torch, ours, width = f"_blocks.{i}", f"blocks.{i}", block.width
        for conv, norm, name, shape in (
            ("_expand_conv", "_bn0", "expand", (width, block.c_in, 1, 1)),
            ("_depthwise_conv", "_bn1", "depthwise", (width, 1, block.size, block.size)),
            ("_project_conv", "_bn2", "project", (block.c_out, width, 1, 1)),
        ):
            if name != "expand" or block.expand > 1:
                rows += _layer(f"{torch}.{conv}", f"{torch}.{norm}", f"{ours}.{name}", shape)
    rows += _layer("_conv_head", "_bn1", "head", (_HEAD, BLOCKS[-1].c_out, 1, 1))
    return rows + linear("_fc", "classifier", _HEAD, _CLASSES)
