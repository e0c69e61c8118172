"""State of a run, sharded over the mesh, and its optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training import initialize
from dossr_jax.training.params import (
    Params,
    abstract,
    build,
    learns,
    lora_shapes,
    lora_start,
    make_graphdef,
    shapes_of,
)
from dossr_jax.training.stages.base import Stage


class TrainState(NamedTuple):
    """Everything that a run consists of, one pytree of arrays.

    step: int32, steps done. key: uint32 (2,), data of the run's random key. learn: parameters
    that learn, float32, by name. ema: their EMA, empty without it. opt_state: of
    optax. frozen: all other parameters; never changed, never seen by the optimizer.
    """

    step: Array
    key: Array
    learn: Params
    ema: Params
    opt_state: optax.OptState
    frozen: Params


class TrainingRun(NamedTuple):
    """A run's state with the structure that makes a model of it.

    `config.model` is the model that is trained: of the file that the run started from it has the
    scale factor of the latents, prompts and sampler.
    """

    config: TrainConfig
    graphdef: nnx.GraphDef
    state: TrainState


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate by step: linear warm-up, then a cosine to zero at `steps`, or constant."""
    warmup = max(1, min(config.warmup, steps))
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
    # The first step already has a rate: counting starts at one.
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; only kernels decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps),
            *config.betas,
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree),
        ),
    )


def start_run(
    config: TrainConfig, init: Path | None, mesh: Mesh, crops: Callable[[], np.ndarray]
) -> TrainingRun:
    """State of step 0, on the mesh.

    Args:
      init: model file to start from (dossr_jax.convert, or the stage before); None starts from
        random weights.
      crops: gives HR crops (b, h, w, 3) uint8, which some stages initialize weights from.

    Raises:
      UserError: the file is damaged or holds another architecture.
    """
    model, read = initialize.open_start(config, init, crops)
    config = dataclasses.replace(config, model=model)
    shapes = shapes_of(abstract(model, config))
    factors = lora_shapes(shapes, Stage.of(config).adapter_rank)

    def value(name: str) -> Array:
        if name in factors:
            array = lora_start(name, factors[name], config.seed)
        else:
            array = read(name)
        dtype = "float32" if learns(name, config) else config.parallel.frozen_dtype
        sharding = parallel.state_shardings(array, mesh)
        return parallel.put(np.asarray(array, jnp.dtype(dtype)), sharding)

    names = [*shapes, *factors]
    learn = {name: value(name) for name in names if learns(name, config)}
    frozen = {name: value(name) for name in names if not learns(name, config)}
    fresh = jax.jit(
        lambda learn: _first(config, learn), out_shardings=_shardings_of(config, learn, mesh)
    )
    step, key, ema, opt_state = fresh(learn)
    state = TrainState(step, key, learn, ema, opt_state, frozen)
    return TrainingRun(config, make_graphdef(config), state)


def abstract_run(config: TrainConfig, mesh: Mesh) -> TrainingRun:
    """:func:`start_run` with shapes, dtypes and shardings in place of arrays."""
    shapes = shapes_of(abstract(config.model, config))
    shapes |= lora_shapes(shapes, Stage.of(config).adapter_rank)

    def leaf(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    learn = {n: leaf(s, "float32") for n, s in shapes.items() if learns(n, config)}
    frozen_dtype = config.parallel.frozen_dtype
    frozen = {n: leaf(s, frozen_dtype) for n, s in shapes.items() if not learns(n, config)}
    step, key, ema, opt_state = jax.eval_shape(lambda tree: _first(config, tree), learn)
    state = TrainState(step, key, learn, ema, opt_state, frozen)
    shardings = parallel.state_shardings(state, mesh)
    state = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
    )
    return TrainingRun(config, make_graphdef(config), state)


def trained_model(run: TrainingRun, state: TrainState, *, ema: bool = True) -> DoSSR:
    """The whole model with host copies of a state's weights, low-rank updates merged.

    Args:
      ema: take the EMA weights if there are any, not the last ones.
    """
    learn = state.ema if ema and state.ema else state.learn
    host = {name: parallel.to_host(value) for name, value in {**state.frozen, **learn}.items()}
    return build(run.graphdef, host)


def _first(config: TrainConfig, learn: Params) -> tuple[Any, ...]:
    """(step, key, ema, opt_state) of a fresh run whose parameters are `learn`."""
    ema = jax.tree.map(jnp.copy, learn) if config.optimizer.ema_decay else {}
    opt_state = make_optimizer(config.optimizer, config.steps).init(learn)
    key = jax.random.key_data(jax.random.key(config.seed, impl="threefry2x32"))
    return jnp.int32(0), key, ema, opt_state


def _shardings_of(config: TrainConfig, learn: Params, mesh: Mesh) -> Any:
    abstract_state = jax.eval_shape(lambda tree: _first(config, tree), learn)
    return parallel.state_shardings(abstract_state, mesh)
