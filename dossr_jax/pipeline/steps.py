"""What every step of the solver makes of a small picture, to be looked at."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax import gpu, method
from dossr_jax.area_means import keep_area_means
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.image import color_fix, is_grey, levels_to_pixels, pixels_to_levels, remove_color
from dossr_jax.method import Controls, KeyNoise, Networks, Restoration
from dossr_jax.restore import Layout, restore
from dossr_jax.systems import system_of


@dataclasses.dataclass(frozen=True)
class Stages:
    """Pictures uint8 on the way to a result, of the size that the model makes.

    Attributes:
      pre_restored, decoded, result: before diffusion, before the colour fix, and in the end.
      steps: the prediction of every step, decoded and with the colour fix; none of models that do
        not sample, that take one step, or whose latents another decoder reads (ResShift).
    """

    pre_restored: np.ndarray
    steps: tuple[np.ndarray, ...]
    decoded: np.ndarray
    result: np.ndarray


class _Pictures(NamedTuple):
    pre_restored: Array
    steps: Array
    decoded: Array
    result: Array


@functools.partial(
    jax.jit, static_argnames=("graphdef", "layout"), compiler_options=gpu.COMPILER_OPTIONS
)
def run_stages(
    graphdef: nnx.GraphDef,
    layout: Layout,
    state: nnx.State,
    lr: Array,
    size: Array,
    noise: KeyNoise,
    table: SolverTable | None,
    controls: Controls | None,
) -> _Pictures:
    """As dossr_jax.restore.restore without tiles; one program for every number of steps.

    Returns:
      uint8 (b, kh, kw, 3), of the steps (rows of the table, b, kh, kw, 3), those of padded rows
      black, where the model enlarges k times.
    """
    whole = dataclasses.replace(layout, tile=None, keep=True)
    no_tiles = jnp.zeros((0, 3), jnp.int32), jnp.int32(0)
    # Its own compiler options are for a program of its own.
    run = inspect.unwrap(restore)(
        graphdef, whole, state, lr, size, *no_tiles, noise, table, controls
    )
    assert isinstance(run, Restoration)
    pixels, grey = levels_to_pixels(lr), is_grey(lr)

    def shown(image: Array) -> Array:
        return pixels_to_levels(remove_color(image, grey), truncate=layout.truncate)

    model: Any = nnx.merge(graphdef, state)
    system = system_of(model.config)
    factor = run.result.shape[1] // lr.shape[1]

    def kept(image: Array) -> Array:
        return keep_area_means(image, pixels, size) if system.keeps_areas(model.config) else image

    result = shown(kept(run.result))
    steps = jnp.zeros((0, *result.shape), jnp.uint8)
    if run.path is not None and isinstance(model, Networks) and table is not None:

        def decode(x0: Array) -> Array:
            pre, fix = run.pre_restored, layout.color_fix
            assert run.condition is not None
            _, image = method.decode_latents(model, x0, run.condition.x_lr, pre, fix)
            fixed = color_fix(fix, image, pre, factor * size)
            return shown(kept(fixed))

        def row(step: tuple[Array, Array]) -> Array:
            return jax.lax.cond(step[1], decode, lambda _: jnp.zeros_like(result), step[0])

        steps = jax.lax.map(row, (run.path.x0, table.rows.active))
    return _Pictures(shown(run.pre_restored), steps, shown(run.decoded), result)


def as_stages(pictures: Any, height: int, width: int, steps: int) -> Stages:
    """The first image of what :func:`run_stages` returned, cut to its sides, with its steps."""
    pre, path, decoded, result = (np.asarray(p)[..., :height, :width, :] for p in pictures)
    taken = path[:steps, 0] if steps > 1 else ()
    return Stages(pre[0], tuple(taken), decoded[0], result[0])
