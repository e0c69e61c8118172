"""What tests of the solvers share: a schedule, draws, and a denoiser to run."""

import jax
import jax.numpy as jnp
import numpy as np

from dossr_jax.config import ProcessConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import Point, SolverTable

SCHEDULE = make_schedule(ProcessConfig())
SHAPE = (2, 4, 3, 2)


def draws(steps: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x_lr, the start noise and one noise a step, float64."""
    rng = np.random.default_rng(seed)
    x_lr, noise_init = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(2))
    return x_lr, noise_init, jnp.asarray(rng.standard_normal((steps, *SHAPE)))


def point_of(table: SolverTable, i: int) -> Point:
    """What a denoiser is told at row `i`."""
    rows = table.rows
    return Point(rows.t[i], rows.alpha[i], rows.sigma[i], rows.eta[i])


def denoise(x, point):
    """A smooth nonlinear denoiser that uses all it is given."""
    return jnp.tanh(x * point.alpha - 0.3 * point.sigma) + 0.1 * jnp.cos(point.t / 100) * point.eta
