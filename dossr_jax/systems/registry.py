"""All systems, and models built by their configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dossr_jax import weights
from dossr_jax.config import ModelConfig
from dossr_jax.systems import dasr, diffbir, dossr, one_step, resshift, rrdb, swinir, task
from dossr_jax.systems.base import System
from dossr_jax.systems.files import BUFFER_PREFIX, open_model
from dossr_jax.weights import Lazy

SYSTEMS: tuple[System, ...] = (
    dossr.SYSTEM,
    task.SYSTEM,
    diffbir.SYSTEM,
    rrdb.SYSTEM,
    swinir.SYSTEM,
    dasr.SYSTEM,
    resshift.SYSTEM,
    one_step.OSEDIFF,
    one_step.PISASR,
)


def system_of(config: ModelConfig) -> System:
    """The system that a configuration describes a model of."""
    return next(system for system in SYSTEMS if system.name == config.system)


def abstract_model(
    config: ModelConfig, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> Any:
    """Build a model with shapes in place of arrays."""
    module = system_of(config).module
    return weights.make_abstract(
        lambda rngs: module(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    )


def prepare_model(
    config: ModelConfig,
    tensors: Mapping[str, Lazy],
    source: str,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> tuple[Any, Callable[[], None]]:
    """A model of shapes, and what reads the given tensors into it, as :func:`build_model`.

    Raises:
      UserError: tensors that do not fit the configuration; from the second, that are not finite.
    """
    parameters = {n: t for n, t in tensors.items() if not n.startswith(BUFFER_PREFIX)}
    model = abstract_model(config, dtype=dtype, param_dtype=param_dtype or dtype)
    return model, weights.filler(model, parameters, source)


def build_model(
    config: ModelConfig,
    tensors: Mapping[str, Lazy],
    source: str,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> Any:
    """A model with the given tensors, `buffers.*` left aside.

    Args:
      source: where they come from, for messages.
      dtype: compute dtype. param_dtype: dtype of the parameters, `dtype` if None.

    Raises:
      UserError: tensors that do not fit the configuration, or are not finite.
    """
    model, fill = prepare_model(config, tensors, source, dtype=dtype, param_dtype=param_dtype)
    fill()
    return model


def load_model(
    path: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any | None = None
) -> Any:
    """Load a model from a .safetensors file, its shards or an Orbax checkpoint folder.

    Args:
      path: what :func:`save_model`, :func:`write_orbax` or dossr_jax.convert wrote.
      dtype, param_dtype: as in :func:`build_model`.

    Raises:
      UserError: missing, truncated, foreign or ill-fitting file, or weights that are not finite.
    """
    config, tensors = open_model(path)
    return build_model(config, tensors, str(path), dtype=dtype, param_dtype=param_dtype)
