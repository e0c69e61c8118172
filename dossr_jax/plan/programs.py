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

from dossr_jax import parallel, weights
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
      arguments: what it is called with, by what it is.
      samples: images that one run of it works on, over all devices.
      repeats: how often the body of its loop runs; XLA's counts take it once.
      body: traces that body for the samples of one device; None where there is no loop.
    """

    trace: Callable[[], Any]
    arguments: Mapping[str, Any]
    samples: int
    repeats: int = 1
    body: Callable[[], Any] | None = None


def train_program(config: TrainConfig, devices: Sequence[Any]) -> Program:
    """The training step of a configuration on these devices.

    Raises:
      UserError: batch or fsdp do not divide among the devices.
    """
    mesh = parallel.make_mesh(config.parallel.fsdp, devices)
    batch_size, crop = config.data.batch, config.data.crop
    parallel.check_batch(batch_size, config.optimizer.microbatches, mesh)
    run = abstract_run(config, mesh)
    split = parallel.batch_sharding(mesh)
    batch = {
        "hr": jax.ShapeDtypeStruct((batch_size, crop, crop, 3), jnp.uint8, sharding=split),
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
    """Operations that training on one sample needs, as written: nothing recomputed, all attention.

    Counted of the lowered step itself, for a TPU, whose attention hides in no library's kernel.
    """
    alone = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch=1),
        optimizer=dataclasses.replace(config.optimizer, microbatches=1),
        parallel=dataclasses.replace(config.parallel, fsdp=1, remat="none"),
    )
    return count_flops(train_program(alone, jax.devices("cpu")[:1]).trace(), "tpu")


def count_flops(traced: Any, platform: str) -> float:
    """Operations of a traced function as written for a platform, before XLA's optimisations."""
    lowered = traced.lower(lowering_platforms=(platform,))
    return costs(lowered.cost_analysis())[0] or 0.0


def costs(analysis: Any) -> tuple[float | None, float | None]:
    """(operations, bytes accessed) of XLA's cost analysis: a dict, in some versions in a list."""
    if isinstance(analysis, list | tuple):
        analysis = analysis[0] if analysis else None
    if not analysis:
        return None, None
    return analysis.get("flops"), analysis.get("bytes accessed")


def restore_program(
    model: DoSSRConfig, devices: Sequence[Any], *, images: int, size: int, dtype: str
) -> Program:
    """Restoring `images` images to `size` x `size` pixels, shared by these devices.

    Weights are whole on every device, as dossr_jax.pipeline lays them out.

    Raises:
      UserError: the images do not divide among the devices, or are worked on in tiles.
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
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ()))
    abstract = weights.abstract_model(model, dtype=DTYPES[dtype], param_dtype=DTYPES[dtype])
    graphdef, state = nnx.split(abstract)
    sampler = model.sampler
    table = make_table(make_schedule(model.process), sampler)
    table = cast(pad_table(table, MAX_STEPS), np.float32)
    side = size // UPSCALE
    keys = jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((images,), jnp.uint32))
    controls = Controls(
        context=abstract.context.get_value(),
        negative_context=abstract.negative_context.get_value(),
        **dict.fromkeys(("cfg_scale", "strength", "fidelity", "detail"), np.float32(0)),
    )
    layout = Layout(tile_batch=images, color_fix=sampler.color_fix)
    batch = {
        "lr": jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8),
        "size": jax.ShapeDtypeStruct((images, 2), jnp.int32),
        "keys": keys,
    }
    state, batch = _placed(state, everywhere), _placed(batch, split)
    tiles, count, table, controls = _placed(
        (np.zeros((0, 3), np.int32), np.int32(0), table, controls), everywhere
    )
    each = images // len(devices)
    return Program(
        trace=lambda: restore.trace(
            graphdef,
            layout,
            state,
            batch["lr"],
            batch["size"],
            tiles,
            count,
            KeyNoise(batch["keys"]),
            table,
            controls,
        ),
        arguments={"frozen": state, "batch": batch, "settings": (tiles, count, table, controls)},
        samples=images,
        repeats=sampler.steps,
        body=lambda: _trace_evaluation(abstract, each, size // unit),
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
