"""State of a run, from the weights it starts with, laid out on the mesh; and the optimiser."""

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

from dossr_jax import parallel, weights
from dossr_jax.config import DoSSRConfig, OptimizerConfig, TrainConfig, VAEConfig
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.training import start
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


class TrainState(NamedTuple):
    """All that a run consists of, one pytree of arrays.

    step: int32, steps done. key: uint32 (2,), data of the run's random key. learn: parameters
    that learn, float32, by name. ema: their average, empty where none is kept. opt_state: of
    optax. frozen: all other parameters; never changed, never seen by the optimiser.
    """

    step: Array
    key: Array
    learn: Params
    ema: Params
    opt_state: optax.OptState
    frozen: Params


class Run(NamedTuple):
    """A run's state with the structure that makes a model of it.

    `config` is the run's, its model the one of the file it started from (which knows the scale
    factor of its latents).
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
    config: TrainConfig, init: Path | None, mesh: Mesh, images: np.ndarray | None = None
) -> Run:
    """State of step 0, on the mesh.

    Args:
      init: model file to start from (dossr_jax.convert, or the stage before); None starts from
        random weights, the autoencoder from the best linear code of `images`.
      images: HR crops (b, h, w, 3) uint8; needed by stage "vae" without `init`.

    Raises:
      UserError: the file is damaged or holds another architecture.
    """
    model, read = _open(config, init, images)
    config = dataclasses.replace(config, model=model)
    shapes = shapes_of(abstract(model, config))
    factors = lora_shapes(shapes, config.lora_rank)

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
    return Run(config, make_graphdef(config), state)


def abstract_run(config: TrainConfig, mesh: Mesh) -> Run:
    """:func:`start_run` with shapes, dtypes and shardings in place of arrays."""
    shapes = shapes_of(abstract(config.model, config))
    shapes |= lora_shapes(shapes, config.lora_rank)

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
    return Run(config, make_graphdef(config), state)


def trained_model(run: Run, state: TrainState, *, ema: bool = True) -> DoSSR:
    """The whole model with host copies of a state's weights, low-rank updates merged.

    Args:
      ema: take the average where one is kept, not the last weights.
    """
    learn = state.ema if ema and state.ema else state.learn
    host = {name: parallel.to_host(value) for name, value in {**state.frozen, **learn}.items()}
    return build(run.graphdef, host)


def same_architecture(a: DoSSRConfig, b: DoSSRConfig) -> bool:
    """Whether models have the same networks; latents' scale, prompts and sampler may differ."""

    def bare(config: DoSSRConfig) -> tuple[Any, ...]:
        vae = dataclasses.replace(config.vae, scale_factor=VAEConfig.scale_factor)
        return (
            config.unet,
            vae,
            config.rrdb,
            config.refiner,
            config.process,
            config.shared_encoder,
            config.context_length,
        )

    return bare(a) == bare(b)


def _first(config: TrainConfig, learn: Params) -> tuple[Any, ...]:
    """(step, key, ema, opt_state) of a fresh run whose parameters are `learn`."""
    ema = jax.tree.map(jnp.copy, learn) if config.optimizer.ema_decay else {}
    opt_state = make_optimizer(config.optimizer, config.steps).init(learn)
    key = jax.random.key_data(jax.random.key(config.seed, impl="threefry2x32"))
    return jnp.int32(0), key, ema, opt_state


def _shardings_of(config: TrainConfig, learn: Params, mesh: Mesh) -> Any:
    abstract_state = jax.eval_shape(lambda tree: _first(config, tree), learn)
    return parallel.state_shardings(abstract_state, mesh)


def _open(
    config: TrainConfig, init: Path | None, images: np.ndarray | None
) -> tuple[DoSSRConfig, Callable[[str], np.ndarray]]:
    """Configuration and parameters, by name, of the model that a run starts from."""
    if init is None:
        zero_output = config.stage != "dossr"
        has_refiner = config.model.refiner and config.stage != "refiner"  # it joins below
        model = dataclasses.replace(config.model, refiner=has_refiner)
        model = start.make_model(model, config.seed, zero_output=zero_output)
        if config.stage == "vae":
            if images is None:
                raise ValueError("the linear start of an autoencoder needs images")
            start.start_vae(model, images)
        values = {name: np.asarray(p[...]) for name, p in weights.names_and_params(model)}
        found, read = model.config, values.__getitem__
    else:
        file = weights.open_model(init)
        # The text tower takes no part in training: prompts are stored as embeddings.
        found, read = dataclasses.replace(file.config, text=None), file.read
        names = {n for n in file.names if not n.startswith("text.")}
        fits = dataclasses.replace(found, refiner=found.refiner or config.stage == "refiner")
        if not same_architecture(fits, config.model):
            raise UserError(
                f"{init}: its networks are not the configuration's; give the file that the stage "
                "before wrote, or one that fits"
            )
        shapes = shapes_of(abstract(found, config))
        weights.check_names(shapes, {n: file.shape(n) for n in names}, str(init))
    if config.stage == "refiner":
        if not found.refiner:
            read = start.with_fresh_refiner(read, found)
        found = dataclasses.replace(found, refiner=True, sampler=config.model.sampler)
    if config.stage == "dossr":
        sampler = dataclasses.replace(config.model.sampler, start=config.start)
        found = dataclasses.replace(found, sampler=sampler)
        if start.control_is_fresh(read):
            read = start.with_started_control(read)  # a trained one goes on
    return found, read
