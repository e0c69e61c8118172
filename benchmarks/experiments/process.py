"""Experiments with other figures: the spread over seeds, and the path of one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import make_table
from dossr_jax.evaluate import score
from dossr_jax.image import pixels_to_levels
from dossr_jax.method import Controls, KeyNoise, restore_images
from dossr_jax.restore import UPSCALE
from experiments import draw
from experiments.bench import Bench, Variant
from experiments.sampling import Experiment

SEEDS = 8
STEPS = 8


def seeds(systems: Mapping[str, str] = MappingProxyType({})) -> Experiment:
    """How much a result depends on its seed.

    Args:
      systems: what has to be said of the file of each other system that has seeds, by its name.
    """
    text = "The published sampler, 5 steps, fidelity 0, eight seeds of the same images."
    if systems:
        said = "Rows with a name are other systems, each sampled as its model file says."
        text = " ".join([text, said, *systems.values()])
    labels = tuple(f"seed {seed}" for seed in range(SEEDS))
    variants = [Variant(label, {"seed": seed}) for seed, label in enumerate(labels)]
    variants += [
        Variant(f"{name}, {label}", {"seed": seed}, system=name)
        for name in systems
        for seed, label in enumerate(labels)
    ]
    return Experiment("Seed sensitivity", text, tuple(variants), shown=labels)


def path() -> Experiment:
    """The shifting sequence, and a picture on its way through the process."""
    return Experiment(
        "The shifting sequence, and one run through the process",
        f"Top: eta, alpha and sigma over t; dots mark the {STEPS} evaluations of order 1, SDE, "
        "uniform grid, fidelity 0, seed 0. Bottom, for each evaluation: x_t / alpha_t decoded, "
        "which is (1 - eta) x0 + eta x_lr with its noise, and the prediction of x0 decoded, "
        "without colour fix. The tables show the predictions.",
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
        kept = restore_images(
            model,
            model.pre_restore(lr),
            jnp.array([lr.shape[1:3]], jnp.int32),
            table=table,
            controls=Controls(
                context=model.context[...],
                negative_context=model.negative_context[...],
                cfg_scale=1.0,
                strength=1.0,
                fidelity=0.0,
            ),
            noise=KeyNoise(jax.random.key(0)[None]),
            fix="none",
            keep_path=True,
        ).path
        alpha = jnp.asarray(table.rows.alpha, jnp.float32)[:, None, None, None]
        decoded = [
            pixels_to_levels(model.decode(a[:, 0])) for a in (kept.x / alpha[:, None], kept.x0)
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
            "label": f"t = {table.rows.t[i]:g}",
            "x": float(table.rows.t[i]),
            "eta": float(table.rows.eta[i]),
            "alpha": float(table.rows.alpha[i]),
            "sigma": float(table.rows.sigma[i]),
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
