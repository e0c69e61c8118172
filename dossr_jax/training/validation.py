"""Metrics and pictures of the EMA weights on fixed images, compiled once per run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import metrics, parallel
from dossr_jax.config import DataConfig, TrainConfig
from dossr_jax.data.pipeline import Batches
from dossr_jax.data.sources import Source
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.training.inputs import Batch, make_inputs
from dossr_jax.training.params import ema_model
from dossr_jax.training.stages.base import Stage
from dossr_jax.training.state import TrainState
from dossr_jax.training.step import make_eval_step

IMAGES = 12
_BUCKETS = 5
_PICTURE_SIDE = 2048  # of a grid, about, in pixels


class Report(NamedTuple):
    """Means over the images, and a grid (h, w, 3) uint8: input, output and HR side by side."""

    metrics: dict[str, float]
    picture: np.ndarray


class Validation:
    """Function from a state to its :class:`Report`; every process makes one and calls it in step.

    Metrics are the `loss`, in latent stages also that of every range of times (`loss_tA-B`), and
    `psnr_y` and `ssim_y` of what the stage makes: the pre-restored image, the autoencoder's, the
    prior's denoised in one step, or the one that the model's own sampler makes, before the
    colour fix or, in the refiner's stage, after all.
    """

    def __init__(self, config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh, source: Source):
        self._config, self._mesh = config, mesh
        self._eval = make_eval_step(config, graphdef, mesh)
        self._show = make_show(config, graphdef, mesh)
        # No larger than what training runs at once, so that it fits in memory.
        microbatch = config.data.batch // config.optimizer.microbatches
        size = min(microbatch, -(-IMAGES // mesh.size) * mesh.size)
        # The last batch is filled up with repeats: one compiled shape.
        index = np.arange(-(-IMAGES // size) * size) % IMAGES
        self._parts = index.reshape(-1, size)
        images = fixed_batch(source, config.data, IMAGES)
        parts = [self._put({k: v[i] for k, v in images.items()}) for i in self._parts]
        degrade = _make_degrade(config, mesh)
        self._batches = [batch | {"lr": degrade(batch)} for batch in parts]

    def __call__(self, state: TrainState) -> Report:
        buckets = bucket_times(self._config, IMAGES)
        losses = {
            name: self._over_images(lambda b, t: self._eval(state, b, t)["loss"], t)
            for name, t in (buckets or {"loss": None}).items()
        }
        shown = self._over_images(
            lambda b, t: self._show(state, b, t), spread_times(self._config, IMAGES)
        )
        measured = {"loss": float(np.mean(list(losses.values())))}
        measured |= {name: float(np.mean(loss)) for name, loss in losses.items()}
        measured |= {name: float(np.mean(shown[name])) for name in ("psnr_y", "ssim_y")}
        return Report(measured, _grid(shown["input"], shown["output"], shown["hr"]))

    def _put(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Array]:
        sharding = parallel.batch_sharding(self._mesh)
        return {name: parallel.put(array, sharding) for name, array in arrays.items()}

    def _over_images(self, fn: Callable[..., Any], t: np.ndarray | None) -> Any:
        """Host arrays, images first, of what fn(batch, times) gives for all batches."""
        results = [
            jax.tree.map(
                parallel.to_host, fn(b, None if t is None else self._put({"t": t[i]})["t"])
            )
            for b, i in zip(self._batches, self._parts, strict=True)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:IMAGES], *results)


def fixed_batch(source: Source, config: DataConfig, count: int) -> dict[str, np.ndarray]:
    """`count` crops of a source, the same in every run and process, at the images' own size."""
    plain = dataclasses.replace(
        config, batch=count, augment=False, scale_range=(1.0, 1.0), workers=0, prefetch=0
    )
    with Batches(source, plain, seed=0) as batches:
        return next(batches)


def _make_degrade(config: TrainConfig, mesh: Mesh) -> Callable[[Batch], Array]:
    """Jitted function from a batch to its LR images, uint8: what they are on its grid anyway.

    Degradation takes long to compile; the other programs are spared it.
    """
    make = make_inputs(config, mesh, jax.random.key(config.seed, impl="threefry2x32"))
    return jax.jit(lambda batch: jnp.round(255 * make(batch).lr).astype(jnp.uint8))


def _time_range(config: TrainConfig) -> tuple[int, int] | None:
    """Times that a stage trains at, from the first to before the second."""
    return Stage.of(config).time_range(make_schedule(config.model.process))


def _spread(low: float, high: float, count: int) -> np.ndarray:
    return (low + (high - low) * (np.arange(count) + 0.5) / count).astype(np.int32)


def spread_times(config: TrainConfig, count: int) -> np.ndarray | None:
    """Times (count,) int32 even over the range a stage trains at; None without times."""
    limits = _time_range(config)
    return None if limits is None else _spread(*limits, count)


def bucket_times(config: TrainConfig, count: int) -> dict[str, np.ndarray]:
    """Name -> times (count,) int32 of every part of that range; empty without times."""
    limits = _time_range(config)
    if limits is None:
        return {}
    low, high = limits
    edges = np.linspace(low, high, min(_BUCKETS, high - low) + 1)
    return {
        f"loss_t{round(a)}-{round(b) - 1}": _spread(a, b, count)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    }


def make_show(
    config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[TrainState, Batch, Array | None], dict[str, Array]]:
    """Jitted (state, batch, t) -> `input`, `output`, `hr` (b, h, w, 3) and measures (b,)."""

    @jax.jit
    def show(state: TrainState, batch: Batch, t: Array | None) -> dict[str, Array]:
        key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
        inputs = make_inputs(config, mesh, key)(batch)
        model = ema_model(config, graphdef, mesh, state)
        source, output = Stage.of(config).show(model, inputs, t)
        output = jnp.clip(output.astype(jnp.float32), 0, 1)
        source = jnp.clip(source.astype(jnp.float32), 0, 1)
        pair = metrics.luma(output), metrics.luma(inputs.hr)
        return {
            "input": jax.image.resize(source, inputs.hr.shape, "nearest"),
            "output": output,
            "hr": inputs.hr,
            "psnr_y": metrics.psnr(*pair, data_range=255.0),
            "ssim_y": metrics.ssim(*pair, data_range=255.0),
        }

    return show


def _grid(*columns: np.ndarray) -> np.ndarray:
    """Columns (n, h, w, 3) in [0, 1] side by side, uint8, as many rows as a picture takes."""
    rows = max(2, _PICTURE_SIDE // columns[0].shape[1])
    picture = np.concatenate([np.concatenate([*c[:rows]], axis=0) for c in columns], axis=1)
    return np.round(255 * picture).astype(np.uint8)
