"""Tables of the text tower."""

from __future__ import annotations

from typing import Literal

from dossr_jax.config import TextConfig
from dossr_jax.convert.tables.rows import Row, linear, norm

_NAMES = {
    "open_clip": {
        "token_embedding": "token_embedding.weight",
        "position_embedding": "positional_embedding",
        "block": "transformer.resblocks",
        "norm1": "ln_1",
        "out": "attn.out_proj",
        "norm2": "ln_2",
        "expand": "mlp.c_fc",
        "contract": "mlp.c_proj",
        "norm_out": "ln_final",
    },
    "transformers": {
        "token_embedding": "embeddings.token_embedding.weight",
        "position_embedding": "embeddings.position_embedding.weight",
        "block": "encoder.layers",
        "norm1": "layer_norm1",
        "out": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "expand": "mlp.fc1",
        "contract": "mlp.fc2",
        "norm_out": "final_layer_norm",
    },
}


def text_table(
    config: TextConfig, naming: Literal["open_clip", "transformers"] = "open_clip"
) -> list[Row]:
    """Table of a text tower, without prefixes ("text_model." for transformers).

    open_clip fuses q, k and v as we do; only it has the projection and the logit scale.
    """
    names, width = _NAMES[naming], config.width
    tokens, positions = (config.vocab_size, width), (config.context_length, width)
    rows = [
        Row(names["token_embedding"], "token_embedding.embedding", "copy", tokens),
        Row(names["position_embedding"], "position_embedding", "copy", positions),
    ]
    for i in range(config.layers):
        theirs, ours = f"{names['block']}.{i}", f"blocks.{i}"
        rows += norm(f"{theirs}.{names['norm1']}", f"{ours}.norm1", width)
        rows += _qkv(theirs, f"{ours}.qkv", width, naming)
        rows += linear(f"{theirs}.{names['out']}", f"{ours}.out", width, width)
        rows += norm(f"{theirs}.{names['norm2']}", f"{ours}.norm2", width)
        rows += linear(f"{theirs}.{names['expand']}", f"{ours}.expand", width, 4 * width)
        rows += linear(f"{theirs}.{names['contract']}", f"{ours}.contract", 4 * width, width)
    rows += norm(names["norm_out"], "norm_out", width)
    if naming == "open_clip" and config.projection_dim:
        shape = (width, config.projection_dim)
        rows += [
            Row("text_projection", "text_projection", "copy", shape),
            Row("logit_scale", "logit_scale", "copy", ()),
        ]
    return rows


def _qkv(theirs: str, ours: str, width: int, naming: str) -> list[Row]:
    if naming == "open_clip":
        fused = f"{theirs}.attn.in_proj"
        return [
            Row(f"{fused}_weight", f"{ours}.kernel", "linear", (3 * width, width)),
            Row(f"{fused}_bias", f"{ours}.bias", "copy", (3 * width,)),
        ]
    rows = []
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows += linear(f"{theirs}.self_attn.{name}", ours, width, width, part=part)
    return rows
