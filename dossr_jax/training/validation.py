"""Metrics and pictures of the EMA weights on fixed images, compiled once per run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

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
from dossr_jax.training.params import ema_model
from dossr_jax.training.stages.base import Stage
from dossr_jax.training.state import KEY_IMPL, TrainState
from dossr_jax.training.step import Batch, make_eval_step, make_inputs

IMAGES = 12
_BUCKETS = 5
_PICTURE_SIDE = 2048  # approximate height of the grid in pixels


class Validation:
    """Function from a state to metrics and a picture; every process calls it at the same step.

    The picture (h, w, 3) uint8 has input, output and HR side by side. Metrics are means over the
    images: the `loss`, in latent stages also that of every range of times (`loss_tA-B`), and
    `psnr_y` and `ssim_y` of what the stage makes: the pre-restored image, the autoencoder's, the
    prior's denoised in one step, or the one that the model's own sampler makes, before the
    colour fix in the stage `dossr`, after it in `adversarial`.
    """

    def __init__(self, config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh, source: Source):
        self._config, self._sharding = config, parallel.batch_sharding(mesh)
        self._eval = make_eval_step(config, graphdef, mesh)
        self._show = make_show(config, graphdef, mesh)
        # No larger than what training runs at once, so that it fits in memory.
        microbatch = config.data.batch // config.optimizer.microbatches
        size = min(microbatch, -(-IMAGES // mesh.size) * mesh.size)
        # The last batch is filled up with repeats: one compiled shape.
        index = np.arange(-(-IMAGES // size) * size) % IMAGES
        self._parts = index.reshape(-1, size)
        images = fixed_batch(source, config.data, IMAGES)
        degrade = _make_degrade(config, mesh)
        self._batches = []
        for part in self._parts:
            batch = {name: parallel.put(a[part], self._sharding) for name, a in images.items()}
            self._batches.append(batch | {"lr": degrade(batch)})

    def __call__(self, state: TrainState) -> tuple[dict[str, float], np.ndarray]:
        buckets = bucket_times(self._config, IMAGES)
        losses = {
            name: self._over_images(lambda b, t: self._eval(state, b, t)["loss"], t)
            for name, t in (buckets or {"loss": None}).items()
        }
        times = next(iter(bucket_times(self._config, IMAGES, buckets=1).values()), None)
        shown = self._over_images(lambda b, t: self._show(state, b, t), times)
        picture = _grid(*(shown.pop(name) for name in ("input", "output", "hr")))
        measured = {"loss": list(losses.values()), **losses, **shown}
        return {name: float(np.mean(values)) for name, values in measured.items()}, picture

    def _over_images(self, fn: Callable[..., Any], t: np.ndarray | None) -> Any:
        """What fn(batch, times) gives for all images, as host arrays with the images first."""
        results = []
        for batch, part in zip(self._batches, self._parts, strict=True):
            times = None if t is None else parallel.put(t[part], self._sharding)
            results.append(jax.tree.map(parallel.to_host, fn(batch, times)))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:IMAGES], *results)


def fixed_batch(source: Source, config: DataConfig, count: int) -> dict[str, np.ndarray]:
    """`count` crops of a source, the same in every run and process, at the images' own size."""
    plain = dataclasses.replace(
        config, batch=count, augment=False, scale_range=(1.0, 1.0), workers=0, prefetch=0
    )
    with Batches(source, plain, seed=0) as batches:
        return next(batches)


def _make_degrade(config: TrainConfig, mesh: Mesh) -> Callable[[Batch], Array]:
    """Jitted function from a batch to its LR images, uint8, which loses nothing.

    Degradation takes long to compile: done once here, the other programs need not contain it.
    """
    inputs_of = make_inputs(config, mesh)
    key = jax.random.key_data(jax.random.key(config.seed, impl=KEY_IMPL))
    return jax.jit(lambda batch: jnp.round(255 * inputs_of(key, batch).lr).astype(jnp.uint8))


def bucket_times(
    config: TrainConfig, count: int, *, buckets: int = _BUCKETS
) -> dict[str, np.ndarray]:
    """Name -> evenly spaced times (count,) int32, for every part of a stage's range of times.

    Empty for a stage without times.
    """
    limits = Stage.of(config).time_range(config.model)
    if limits is None:
        return {}
    low, high = limits
    edges = np.linspace(low, high, min(buckets, high - low) + 1)
    places = np.arange(count) + 0.5
    return {
        f"loss_t{round(a)}-{round(b) - 1}": (a + (b - a) * places / count).astype(np.int32)
        for a, b in itertools.pairwise(edges)
    }


def make_show(
    config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[TrainState, Batch, Array | None], dict[str, Array]]:
    """Jitted (state, batch, t) -> `input`, `output`, `hr` (b, h, w, 3) and measures (b,)."""
    inputs_of = make_inputs(config, mesh)

    @jax.jit
    def show(state: TrainState, batch: Batch, t: Array | None) -> dict[str, Array]:
        inputs = inputs_of(state.key, batch)
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
    """Columns (n, h, w, 3) in [0, 1] side by side, uint8, as many rows as fit."""
    rows = max(2, _PICTURE_SIDE // columns[0].shape[1])
    picture = np.concatenate([np.concatenate([*c[:rows]], axis=0) for c in columns], axis=1)
    return np.round(255 * picture).astype(np.uint8)
