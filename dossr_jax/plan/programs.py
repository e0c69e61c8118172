"""The programs a job runs, with shapes in place of arrays: the training step and restoring.

Both are the functions that train.py and infer.py call; only their arguments are made here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun, jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dossr_jax import parallel, systems
from dossr_jax.config import MAX_STEPS, LatentConfig, ModelConfig, TrainConfig
from dossr_jax.diffusion.solver import cast, pad_table
from dossr_jax.errors import UserError
from dossr_jax.gpu import weight_formats
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.pipeline import DEFAULT_TILE, DTYPES, make_settings
from dossr_jax.programs import shapes_of
from dossr_jax.restore import Layout, restore, split
from dossr_jax.training.state import abstract_run
from dossr_jax.training.step import make_train_step

# XLA's operations alone are counted: on other platforms there may be kernels that it cannot count.
_AS_WRITTEN = "rocm"


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
      trace: traces it for jit; nothing is allocated.
      arguments: shapes, dtypes and shardings of its arguments, by what they are.
      samples: images per run, over all devices.
      repeats: how often the body of its loop runs; XLA's counts take it once.
      body: traces that body for the samples of one device; None where XLA's counts of the whole
        program are multiplied instead.
    """

    trace: Callable[[], Any]
    arguments: Mapping[str, Any]
    samples: int
    repeats: int = 1
    body: Callable[[], Any] | None = None


def train_program(config: TrainConfig, devices: Sequence[Any], batch_size: int) -> Program:
    """The training step of a configuration, with this batch size, on these devices.

    Raises:
      UserError: batch or fsdp do not divide among the devices.
    """
    data = dataclasses.replace(config.data, batch=batch_size)
    config = dataclasses.replace(config, data=data)
    mesh = parallel.make_mesh(config.parallel.fsdp, devices)
    parallel.check_batch(batch_size, config.optimizer.microbatches, mesh)
    run = abstract_run(config, mesh)
    split, crops = parallel.batch_sharding(mesh), (batch_size, data.crop, data.crop, 3)
    batch = {
        "hr": jax.ShapeDtypeStruct(crops, jnp.uint8, sharding=split),
        "id": jax.ShapeDtypeStruct((batch_size,), jnp.uint32, sharding=split),
    }
    step, state = make_train_step(config, run.graphdef, mesh), run.state
    return Program(
        trace=lambda: step.trace(state, batch),
        arguments={
            "parameters": state.learn,
            "average": state.ema,
            "optimizer": state.opt_state,
            "frozen": state.frozen,
            "batch": batch,
        },
        samples=batch_size,
        repeats=config.optimizer.microbatches,
    )


def sample_flops(config: TrainConfig) -> float:
    """Operations that training on one sample needs, as written: nothing is recomputed.

    Counted on the step lowered for a TPU, where no library's kernel hides those of attention.
    """
    alone = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, microbatches=1),
        parallel=dataclasses.replace(config.parallel, fsdp=1, remat="none"),
    )
    return count_flops(train_program(alone, jax.devices("cpu")[:1], 1).trace())


def count_flops(traced: Any, platform: str = _AS_WRITTEN) -> float:
    """Operations of a traced function as written for a platform, before XLA's optimisations."""
    lowered = traced.lower(lowering_platforms=(platform,))
    return (lowered.cost_analysis() or {}).get("flops", 0.0)


def restore_program(
    config: ModelConfig, devices: Sequence[Any], images: int, *, size: int, dtype: str
) -> Program:
    """Restoring `images` images to `size` x `size` pixels, shared by these devices.

    The model may be of any system; it is sampled as its configuration says. Weights are whole on
    every device, as dossr_jax.pipeline lays them out.

    Raises:
      UserError: the images do not divide among the devices, or need tiles.
    """
    check_size(config, size)
    if images % len(devices):
        raise UserError(
            f"{images} images do not divide among {len(devices)} devices; choose a multiple"
        )
    system = systems.system_of(config)
    mesh = Mesh(np.array(devices), ("data",))
    abstract = systems.abstract_model(config, dtype=DTYPES[dtype], param_dtype=DTYPES[dtype])
    graphdef, state = split(abstract)
    settings = make_settings(system.sampler(config))
    table, controls = None, None
    if system.table is not None:
        table = pad_table(system.table(config, settings.sampler), MAX_STEPS)
        table, controls = cast(table, np.float32), _controls(abstract)
    arguments = np.zeros((0, 3), np.int32), np.int32(0), table, controls
    everywhere = parallel.replicated(mesh)
    state = shapes_of(state, weight_formats(state, everywhere))
    arguments = shapes_of(arguments, everywhere)
    geometry = system.geometry(config)
    side = size // geometry.factor
    origin: Any = jax.ShapeDtypeStruct((images, 2), jnp.int32)
    batch = (
        jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images, 2), jnp.int32),
        KeyNoise(
            jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images)),
            origin,
        ),
    )
    batch = shapes_of(batch, NamedSharding(mesh, PartitionSpec("data")))

    @functools.cache
    def trace() -> Any:
        layout = Layout(
            tile_batch=images,
            color_fix=settings.sampler.color_fix,
            guided=system.guided(settings),
            unit=geometry.unit,
            devices=len(devices),
        )
        lr, sizes, noise = batch
        tiles, count, table, controls = arguments
        return restore.trace(
            graphdef, layout, state, lr, sizes, tiles, count, noise, table, controls
        )

    def trace_step() -> Any:
        if len(devices) == 1:
            return _trace_step(trace())
        share = images // len(devices)
        alone = restore_program(config, devices[:1], share, size=size, dtype=dtype)
        return _trace_step(alone.trace())

    return Program(
        trace=trace,
        arguments={"frozen": state, "batch": batch, "settings": arguments},
        samples=images,
        repeats=settings.sampler.steps if system.samples else 1,
        body=trace_step if system.samples else None,
    )


def check_size(config: ModelConfig, size: int) -> None:
    """Refuse a side of restored images that a model does not restore whole, without padding.

    Raises:
      UserError: naming the sides that it does.
    """
    unit, align, _ = systems.system_of(config).geometry(config)
    if not 0 < size <= DEFAULT_TILE or size % (unit * align):
        raise UserError(
            f"restoring to {size} pixels: give a multiple of {unit * align} up to {DEFAULT_TILE}, "
            "the side of a tile; larger images run in batches of tiles"
        )


def _controls(model: Any) -> Controls:
    """Shapes of what steers a model's sampling, as dossr_jax.pipeline makes it."""
    controls = jax.tree.map(np.float32, Controls())
    if not isinstance(model.config, LatentConfig):
        return controls
    return dataclasses.replace(
        controls,
        context=model.context.get_value(),
        negative_context=model.negative_context.get_value(),
    )


def restoring_flops(program: Program, devices: int) -> float:
    """Operations of one device in a restoration, as written, before XLA's optimisations.

    They do not depend on what it is planned for: no library's kernel hides those of attention.
    """
    flops = count_flops(_retrace(program.trace().jaxpr)) / devices
    if program.body is not None and program.repeats > 1:
        flops += (program.repeats - 1) * count_flops(program.body())
    return flops


def _trace_step(traced: Any) -> Any:
    """A step of the solver in a traced restoration, traced on its own."""
    (step,) = _loops(traced.jaxpr.jaxpr)
    return _retrace(step)


def _retrace(jaxpr: Any) -> Any:
    """A traced program on its own, on no particular device."""
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    return jax.jit(jaxpr_as_fun(jaxpr)).trace(*arguments)


def _loops(jaxpr: Any) -> Iterator[Any]:
    """Bodies of the outermost loops whose length is not known before they run."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation.params["body_jaxpr"]
            continue
        for inner in jaxprs_in_params(equation.params):
            yield from _loops(inner)
