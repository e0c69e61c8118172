"""OpenCLIP text tower (defaults: ViT-H/14, 354 M parameters), as Stable Diffusion 2.1 uses it.

Source: Radford et al. 2021 (arXiv 2103.00020) for the transformer; Stable Diffusion 2 takes the
output of the last block but one, sent through the tower's own final norm. The GELU is the exact
one: OpenAI's CLIP has x sigmoid(1.702 x), and jax's default is the tanh formula.
"""

from __future__ import annotations

import math
from typing import Unpack

import jax
from flax import nnx

from dossr_jax.config import TextConfig
from dossr_jax.models.attention import attention
from dossr_jax.models.layers import Factory, LayerOptions


class TextBlock(nnx.Module):
    """Pre-norm transformer block with causal attention; (b, n, width) -> (b, n, width)."""

    def __init__(self, make: Factory, width: int, heads: int):
        self.heads = heads
        self.norm1 = make.layer_norm(width)
        # Output features: all of q, then of k, then of v, each head by head.
        self.qkv = make.linear(width, 3 * width)
        self.out = make.linear(width, width)
        self.norm2 = make.layer_norm(width)
        self.expand = make.linear(width, 4 * width)
        self.contract = make.linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        mixed = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], causal=True)
        x = x + self.out(mixed.reshape(b, n, d))
        hidden = jax.nn.gelu(self.expand(self.norm2(x)), approximate=False)
        return x + self.contract(hidden)


class TextEncoder(nnx.Module):
    """Token ids to the context of the UNet's cross-attention.

    All `config.layers` blocks are stored, and with them `text_projection` (width,
    projection_dim) and the scalar `logit_scale`, which serve CLIP's image-text similarity and no
    forward pass here: checkpoints carry them, and a tower that holds everything its checkpoint
    holds converts one to one and can be written back whole. Copies that were cut down to what
    runs are described by fewer layers, `skip_layers=0` and `projection_dim=0`, which stores
    neither of the two.

    `dtype` is what blocks compute in, `param_dtype` what parameters are stored in. Norm statistics
    and softmax are taken in float32, or in float64 where `dtype` is that.
    """

    def __init__(self, config: TextConfig, **options: Unpack[LayerOptions]):
        width = config.width
        make = Factory(**options)
        self.dtype = make.dtype
        self.layers_run = config.layers - config.skip_layers
        self.token_embedding = make.layer(nnx.Embed, config.vocab_size, width)
        self.position_embedding = make.normal((config.context_length, width), 0.01)
        self.blocks = nnx.List(make.repeat(config.layers, TextBlock, width, config.heads))
        self.norm_out = make.layer_norm(width)
        if config.projection_dim:
            self.text_projection = make.normal((width, config.projection_dim), width**-0.5)
            # CLIP starts its learned log-temperature at log(1 / 0.07).
            self.logit_scale = make.constant((), math.log(1 / 0.07))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Encode `tokens` (b, n) int32, n <= context_length (77), to (b, n, width) of `dtype`.

        An id outside the vocabulary turns the whole of its row into NaN.
        """
        n = tokens.shape[1]
        positions = self.position_embedding[...].astype(self.dtype)[None, :n]
        x = self.token_embedding(tokens) + positions
        for block in self.blocks[: self.layers_run]:
            x = block(x)
        return self.norm_out(x)
