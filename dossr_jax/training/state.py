"""State of a run, sharded over the mesh, and its optimizer."""

from __future__ import annotations

import dataclasses
import functools
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
from dossr_jax.training.params import (
    Params,
    abstract,
    build,
    is_lora,
    learns,
    lora_shapes,
    lora_start,
    open_start,
    shapes_of,
)
from dossr_jax.training.stages.base import Stage

KEY_IMPL = "threefry2x32"  # of the random key whose data a state holds


class TrainState(NamedTuple):
    """Everything that a run consists of, one pytree of arrays.

    step: int32, steps done. key: uint32 (2,), data of the run's random key. learn: parameters
    that learn, float32, by name. ema: their EMA, empty without it. opt_state: state of the optax
    optimizer. frozen: all other parameters; never changed, never seen by the optimizer.
    """

    step: Array
    key: Array
    learn: Params
    ema: Params
    opt_state: optax.OptState
    frozen: Params


class TrainingRun(NamedTuple):
    """A run's state with the structure that makes a model of it.

    `config.model` describes the trained model: its scale factor of the latents, prompts and
    sampler are those of the file that the run started from.
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
    config: TrainConfig,
    init: Path | None,
    mesh: Mesh,
    crops: Callable[[], np.ndarray],
    tx: optax.GradientTransformation | None = None,
) -> TrainingRun:
    """State of step 0, on the mesh.

    Args:
      init: model file to start from (dossr_jax.convert, or the stage before); None starts from
        random weights.
      crops: gives HR crops (b, h, w, 3) uint8, which some stages initialize weights from.
      tx: optimizer in place of the configuration's.

    Raises:
      UserError: the file is damaged or holds another architecture.
    """
    model, read = open_start(config, init, crops)
    run = abstract_run(dataclasses.replace(config, model=model), mesh, tx)

    def fill(leaves: Params) -> Params:
        filled = {}
        for name, leaf in leaves.items():
            array = lora_start(name, leaf.shape, config.seed) if is_lora(name) else read(name)
            filled[name] = parallel.put(np.asarray(array, leaf.dtype), leaf.sharding)
        return filled

    learn, frozen = fill(run.state.learn), fill(run.state.frozen)
    fresh = run.state.step, run.state.key, run.state.ema, run.state.opt_state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, fresh)
    first = jax.jit(functools.partial(_first, run.config, tx), out_shardings=shardings)
    step, key, ema, opt_state = first(learn)
    return run._replace(state=TrainState(step, key, learn, ema, opt_state, frozen))


def abstract_run(
    config: TrainConfig, mesh: Mesh, tx: optax.GradientTransformation | None = None
) -> TrainingRun:
    """:func:`start_run` with shapes, dtypes and shardings in place of arrays."""
    model = abstract(config)
    shapes = shapes_of(model)
    shapes |= lora_shapes(shapes, Stage.of(config).adapter_rank)
    learn, frozen = {}, {}
    for name, shape in shapes.items():
        if learns(name, config):
            learn[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        else:
            frozen[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(config.parallel.frozen_dtype))
    step, key, ema, opt_state = jax.eval_shape(functools.partial(_first, config, tx), learn)
    state = TrainState(step, key, learn, ema, opt_state, frozen)
    shardings = parallel.state_shardings(state, mesh)
    state = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
    )
    return TrainingRun(config, nnx.split(model)[0], state)


def trained_model(run: TrainingRun) -> DoSSR:
    """The whole model with host copies of the EMA weights, or of the last ones without EMA."""
    arrays = run.state.frozen | (run.state.ema or run.state.learn)
    host = {name: parallel.to_host(value) for name, value in arrays.items()}
    model = build(run.graphdef, host)
    for name in Stage.of(run.config).training_only:
        delattr(model, name)
    return model


def _first(
    config: TrainConfig, tx: optax.GradientTransformation | None, learn: Params
) -> tuple[Any, ...]:
    """(step, key, ema, opt_state) of a fresh run whose parameters are `learn`."""
    ema = jax.tree.map(jnp.copy, learn) if config.optimizer.ema_decay else {}
    opt_state = (tx or make_optimizer(config.optimizer, config.steps)).init(learn)
    key = jax.random.key_data(jax.random.key(config.seed, impl=KEY_IMPL))
    return jnp.int32(0), key, ema, opt_state
