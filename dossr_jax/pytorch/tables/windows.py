"""Table of a block of window attention, and the buffers that Swin's checkpoints carry."""

from __future__ import annotations

import re

from dossr_jax.pytorch.tables.rows import Row, linear, norm

# Position indices and masks follow from the sizes: they are computed, not kept.
WINDOW_BUFFERS = re.compile(r"(?:.+\.)?(?:attn\.relative_position_index|attn_mask)")


def window_block(
    torch: str,
    ours: str,
    dim: int,
    *,
    heads: int,
    window: int,
    mlp_ratio: int,
    conv_mlp: bool = False,
) -> list[Row]:
    """List the rows of a WindowBlock; with `conv_mlp` PyTorch's MLP has 1x1 convolutions."""
    table = f"{torch}.attn.relative_position_bias_table"
    rows = norm(f"{torch}.norm1", f"{ours}.norm1", dim)
    rows += linear(f"{torch}.attn.qkv", f"{ours}.attn.qkv", dim, 3 * dim)
    rows.append(Row(table, f"{ours}.attn.position_bias", "copy", ((2 * window - 1) ** 2, heads)))
    rows += linear(f"{torch}.attn.proj", f"{ours}.attn.proj", dim, dim)
    rows += norm(f"{torch}.norm2", f"{ours}.norm2", dim)
    layer = pointwise if conv_mlp else linear
    rows += layer(f"{torch}.mlp.fc1", f"{ours}.mlp.fc1", dim, mlp_ratio * dim)
    return rows + layer(f"{torch}.mlp.fc2", f"{ours}.mlp.fc2", mlp_ratio * dim, dim)


def pointwise(torch: str, ours: str, d_in: int, d_out: int) -> list[Row]:
    """List the rows of a linear layer that is a 1x1 convolution in PyTorch."""
    return [
        Row(f"{torch}.weight", f"{ours}.kernel", "conv1x1_linear", (d_out, d_in, 1, 1)),
        Row(f"{torch}.bias", f"{ours}.bias", "copy", (d_out,)),
    ]
