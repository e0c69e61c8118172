"""The programs a job runs, with shapes in place of arrays: the training step and restoring.

Both are the functions that train.py and infer.py call; only their arguments are made here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dossr_jax import parallel, systems
from dossr_jax.config import MAX_STEPS, DoSSRConfig, TrainConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import cast, make_table, pad_table
from dossr_jax.errors import UserError
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.pipeline import DEFAULT_TILE, DTYPES
from dossr_jax.restore import Layout, restore
from dossr_jax.training.state import abstract_run
from dossr_jax.training.step import make_train_step


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
    return count_flops(train_program(alone, jax.devices("cpu")[:1], 1).trace(), "tpu")


def count_flops(traced: Any, platform: str) -> float:
    """Operations of a traced function as written for a platform, before XLA's optimisations."""
    lowered = traced.lower(lowering_platforms=(platform,))
    return (lowered.cost_analysis() or {}).get("flops", 0.0)


def restore_program(
    model: DoSSRConfig, devices: Sequence[Any], images: int, *, size: int, dtype: str
) -> Program:
    """Restoring `images` images to `size` x `size` pixels, shared by these devices.

    Weights are whole on every device, as dossr_jax.pipeline lays them out.

    Raises:
      UserError: the images do not divide among the devices, or need tiles.
    """
    unit, align = model.vae.downscale, model.unet.downscale
    if not 0 < size <= DEFAULT_TILE or size % (unit * align):
        raise UserError(
            f"restoring to {size} pixels: give a multiple of {unit * align} up to {DEFAULT_TILE}, "
            "the side of a tile; larger images run in batches of tiles"
        )
    if images % len(devices):
        raise UserError(
            f"{images} images do not divide among {len(devices)} devices; choose a multiple"
        )
    mesh = Mesh(np.array(devices), ("data",))
    abstract = systems.abstract_model(model, dtype=DTYPES[dtype], param_dtype=DTYPES[dtype])
    graphdef, state = nnx.split(abstract)
    table = pad_table(make_table(make_schedule(model.process), model.sampler), MAX_STEPS)
    controls = Controls(
        context=abstract.context.get_value(),
        negative_context=abstract.negative_context.get_value(),
        **dict.fromkeys(("cfg_scale", "strength", "fidelity"), np.float32(0)),
    )
    settings = np.zeros((0, 3), np.int32), np.int32(0), cast(table, np.float32), controls
    state, settings = _placed((state, settings), parallel.replicated(mesh))
    side = size // UPSCALE
    batch = (
        jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images, 2), jnp.int32),
        KeyNoise(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))),
    )
    batch = _placed(batch, NamedSharding(mesh, PartitionSpec("data")))

    def trace() -> Any:
        layout = Layout(tile_batch=images, color_fix=model.sampler.color_fix, unit=unit)
        lr, sizes, noise = batch
        tiles, count, table, controls = settings
        return restore.trace(
            graphdef, layout, state, lr, sizes, tiles, count, noise, table, controls
        )

    return Program(
        trace=trace,
        arguments={"frozen": state, "batch": batch, "settings": settings},
        samples=images,
        repeats=model.sampler.steps,
        body=lambda: _trace_evaluation(abstract, images // len(devices), size // unit),
    )


def _trace_evaluation(model: DoSSR, images: int, side: int) -> Any:
    """One evaluation of the networks inside the solver, traced on its own."""
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((images, side, side, model.config.vae.z_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((images,), jnp.float32)
    context = jax.ShapeDtypeStruct((images, *model.context.shape), model.context.dtype)

    @jax.jit
    def evaluate(state: nnx.State, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).predict_noise(x, t, context, x)

    return evaluate.trace(state, x, t, context)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes and dtypes of a tree of arrays (or of shapes), laid out."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
