"""Experiments that draw figures of their own: the spread over seeds, and a way through a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.process import data_prediction
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import cast, make_table, sample
from dossr_jax.evaluate import score
from dossr_jax.image import batch_position_noise, pixels_to_uint8
from dossr_jax.restore import UPSCALE
from experiments import draw
from experiments.bench import Bench, Variant
from experiments.sampling import Experiment

SEEDS = 8
STEPS = 8


def seeds() -> Experiment:
    """How much a result depends on its seed."""
    labels = tuple(f"seed {seed}" for seed in range(SEEDS))
    return Experiment(
        "Seed sensitivity",
        "The published sampler, 5 steps, fidelity 0, eight seeds of the same images.",
        tuple(Variant(label, {"seed": seed}) for seed, label in enumerate(labels)),
        shown=labels,
    )


def path() -> Experiment:
    """The shifting sequence, and a picture on its way through the process."""
    return Experiment(
        "The shifting sequence, and a way through the process",
        f"Above: eta, alpha and sigma over t; dots are the {STEPS} evaluations of order 1, SDE, "
        "uniform grid, fidelity 0, seed 0. Below, at every one: x_t / alpha_t decoded, (1 - eta) "
        "x0 + eta x_lr with its noise, and the prediction of x0 decoded, without colour fix; "
        "the tables are of the predictions.",
        extra=_draw_path,
    )


def _draw_path(bench: Bench, target: Path) -> list[dict[str, Any]]:
    model = bench.upscaler.model
    schedule = make_schedule(model.config.process)
    table = make_table(schedule, SamplerConfig(steps=STEPS, order=1))
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, lr: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, state)
        moments, hint = model.encode(model.pre_restore(lr))
        keys = jax.random.key(0)[None]

        def noise(draw: jax.Array | int) -> jax.Array:
            folded = jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys)
            return batch_position_noise(folded, *x_lr.shape[1:])

        x_lr = model.latents(moments)
        hint, context = model.latents(hint), model.context[...][None]

        def denoise(x, point):
            t = jnp.broadcast_to(point.t, x.shape[:1])
            eps = model.predict_noise(x, t, context, hint)
            levels = point.alpha, point.sigma, point.eta
            return data_prediction(x, eps, x_lr, *levels, model.config.process.lr_skip)

        table32 = cast(table, np.float32)
        _, kept = sample(denoise, x_lr, table32, noise(0), lambda i: noise(1 + i), keep_path=True)
        alpha = table32.alpha[:, None, None, None]
        decoded = [
            pixels_to_uint8(model.decode(a[:, 0])) for a in (kept.x / alpha[:, None], kept.x0)
        ]
        return decoded[0], decoded[1]

    pictures, scores = {}, {}
    for source in bench.sources:
        pair = bench.pairs_of(source)[bench.shown]
        height, width = _whole(pair.lr.shape[:2], model)
        lr = jnp.asarray(pair.lr[None, :height, :width], jnp.float32) / 255
        pictures[source] = tuple(np.asarray(a) for a in run(state, lr))
        hr = pair.hr[: UPSCALE * height, : UPSCALE * width]
        scores[source] = [[score(p, hr, bench.names) for p in way] for way in pictures[source]]
    rows = [
        {
            "label": f"t = {table.t[i]:g}",
            "x": float(table.t[i]),
            "eta": float(table.eta[i]),
            "alpha": float(table.alpha[i]),
            "sigma": float(table.sigma[i]),
            "state": {source: states[i] for source, (states, _) in scores.items()},
            "mean": {source: predictions[i] for source, (_, predictions) in scores.items()},
        }
        for i in range(STEPS)
    ]
    draw.path(target, schedule, rows, pictures)
    return rows


def _whole(size: tuple[int, int], model: Any) -> tuple[int, int]:
    """The largest size of an LR image that the networks take without padding."""
    unit = model.config.vae.downscale * model.config.unet.downscale // 4
    return size[0] // unit * unit, size[1] // unit * unit
