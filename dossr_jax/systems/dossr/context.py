"""The embeddings of the two stored prompts: computed by the text tower, or supplied."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.errors import UserError
from dossr_jax.models.layers import Factory
from dossr_jax.models.text_encoder import TextBlock
from dossr_jax.prompts import tokenize
from dossr_jax.pytorch.state import State
from dossr_jax.systems.base import Model
from dossr_jax.weights import Lazy, lazy

_ARRAYS = {"context": "context", "negative_context": "context_neg"}


def with_context(model: Model, path: str | Path | None) -> Model:
    """Give a model its `context` and `negative_context`.

    Args:
      model: a model that has them already, or a text tower to compute them with.
      path: a .npz file that holds them instead (arrays context and context_neg, each (n, d) or
        (1, n, d)).

    Raises:
      UserError: no source for them, or one that does not fit the UNet.
    """
    if path is not None:
        contexts, origin = _read_npz(path), str(path)
    elif "context" in model.tensors:
        return model
    elif model.config.text is not None:
        contexts, origin = _run_tower(model), "its text tower"
    else:
        raise UserError(
            "the checkpoint has no text tower to embed the prompts with: give their "
            "embeddings with --context FILE.npz (arrays context and context_neg)"
        )
    shape = contexts["context"].shape
    for name, tensor in contexts.items():
        if tensor.shape != shape or shape[-1:] != (model.config.unet.context_dim,):
            raise UserError(
                f"{origin}: {name} is {tensor.shape}; both embeddings must be "
                f"(tokens, {model.config.unet.context_dim})"
            )
    note = f"prompt embeddings ({shape[0]} tokens) from {origin}"
    return model.replace(add=contexts, note=note, context_length=shape[0])


def without_text(model: Model) -> Model:
    """Drop the text tower of a model."""
    note = "text tower left out (--keep-text keeps it)" if model.config.text else None
    return model.replace(drop="text.", text=None, note=note)


def _read_npz(path: str | Path) -> dict[str, Lazy]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS.values() if name not in file.files]
            if missing:
                raise UserError(f"{path}: has no array {' and '.join(missing)}; see --help")
            arrays = {ours: file[theirs] for ours, theirs in _ARRAYS.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole .npz file ({error}); check the path") from error
    for name, array in arrays.items():
        batch = array.shape[:-2]
        if array.dtype.kind != "f" or array.size == 0 or array.ndim < 2 or batch not in ((), (1,)):
            raise UserError(
                f"{path}: {_ARRAYS[name]} is {array.dtype}{array.shape}; an embedding is "
                "a float array (tokens, width)"
            )
        if not np.isfinite(array).all():
            raise UserError(
                f"{path}: {_ARRAYS[name]} has NaN or infinity in it; make the embeddings again"
            )
    return {name: lazy(array[0] if array.ndim == 3 else array) for name, array in arrays.items()}


def _run_tower(model: Model) -> dict[str, Lazy]:
    """Compute the embeddings of the stored prompts, one block of the tower in memory at a time."""
    config = model.config.text
    assert config is not None
    width = config.width
    prompts = (model.config.prompt, model.config.negative_prompt)
    tokens = tokenize(prompts, context_length=config.context_length)
    table = model.tensors["text.token_embedding.embedding"].load()
    if tokens.max() >= len(table):
        raise UserError(
            f"the text tower knows {len(table)} tokens, CLIP's at least {tokens.max() + 1}: give "
            "the embeddings with --context"
        )
    position = model.tensors["text.position_embedding"].load()
    x = jnp.asarray(table[tokens], jnp.float32) + jnp.asarray(position, jnp.float32)[None]
    block = _abstract(lambda make: TextBlock(make, width, config.heads))
    norm = _abstract(lambda make: make.layer_norm(width))
    forward = nnx.jit(lambda module, x: module(x))
    tower = State("the text tower", model.tensors).below("text.")

    def run(module: nnx.Module, name: str, x: jax.Array) -> jax.Array:
        weights.fill(module, tower.below(f"{name}.").tensors, f"{tower.source}, {name}")
        return forward(module, x)

    for i in range(config.layers - config.skip_layers):
        # Waiting keeps the next block's weights from being read before this one's are let go.
        x = run(block, f"blocks.{i}", x).block_until_ready()
    rows = np.asarray(run(norm, "norm_out", x))
    if not np.isfinite(rows).all():
        raise UserError(
            "the text tower gives non-finite embeddings of the stored prompts: its weights are "
            "damaged; give the embeddings with --context"
        )
    return {"context": lazy(rows[0]), "negative_context": lazy(rows[1])}


def _abstract(build: Callable[[Factory], nnx.Module]) -> nnx.Module:
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    return weights.make_abstract(lambda rngs: build(Factory(**options, rngs=rngs)))
