"""Tables of the text tower."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import TextConfig
from dossr_jax.pytorch.tables.rows import Row, linear, norm

# Our layer -> its name in open_clip and in transformers.
_NAMES = {
    "token_embedding": ("token_embedding.weight", "embeddings.token_embedding.weight"),
    "position_embedding": ("positional_embedding", "embeddings.position_embedding.weight"),
    "blocks": ("transformer.resblocks", "encoder.layers"),
    "norm1": ("ln_1", "layer_norm1"),
    "out": ("attn.out_proj", "self_attn.out_proj"),
    "norm2": ("ln_2", "layer_norm2"),
    "expand": ("mlp.c_fc", "mlp.fc1"),
    "contract": ("mlp.c_proj", "mlp.fc2"),
    "norm_out": ("ln_final", "final_layer_norm"),
}


def text_table(
    config: TextConfig, naming: Literal["open_clip", "transformers"] = "open_clip"
) -> list[Row]:
    """List the rows of a text tower, without prefixes ("text_model." for transformers).

    open_clip fuses q, k and v as we do; only it has the projection and the logit scale.
    """
    open_clip, width = naming == "open_clip", config.width
    names = {ours: pair[0 if open_clip else 1] for ours, pair in _NAMES.items()}
    tokens, positions = (config.vocab_size, width), (config.context_length, width)
    rows = [
        Row(names["token_embedding"], "token_embedding.embedding", "copy", tokens),
        Row(names["position_embedding"], "position_embedding", "copy", positions),
    ]
    for i in range(config.layers):
        theirs, ours = f"{names['blocks']}.{i}", f"blocks.{i}"
        rows += norm(f"{theirs}.{names['norm1']}", f"{ours}.norm1", width)
        if open_clip:
            fused = f"{theirs}.attn.in_proj"
            rows.append(Row(f"{fused}_weight", f"{ours}.qkv.kernel", "linear", (3 * width, width)))
            rows.append(Row(f"{fused}_bias", f"{ours}.qkv.bias", "copy", (3 * width,)))
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                rows += linear(f"{theirs}.self_attn.{name}", f"{ours}.qkv", width, width)
        rows += linear(f"{theirs}.{names['out']}", f"{ours}.out", width, width)
        rows += norm(f"{theirs}.{names['norm2']}", f"{ours}.norm2", width)
        rows += linear(f"{theirs}.{names['expand']}", f"{ours}.expand", width, 4 * width)
        rows += linear(f"{theirs}.{names['contract']}", f"{ours}.contract", 4 * width, width)
    rows += norm(names["norm_out"], "norm_out", width)
    if open_clip and config.projection_dim:
        shape = (width, config.projection_dim)
        rows.append(Row("text_projection", "text_projection", "copy", shape))
        rows.append(Row("logit_scale", "logit_scale", "copy", ()))
    return rows
