"""Solvers as tables: coefficients in float64 on the host, then one loop on the device.

In the y-view (docs/method.md) the state is y = x0 + lam eps and the network's input is
x = m y + shift x_lr with m = alpha (1 - eta), shift = alpha eta. Every solver here is one row

    y_next = c_y y + c_x0[0] D + c_x0[1] D_prev + c_x0[2] D_prev2 + c_noise z

where D are predictions of x0; a shorter history is zero coefficients, so all of them share one
loop. Source: DoSSR, arXiv 2409.17778, for the stochastic solvers; the exponential integrals are
derived in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dossr_jax.config import ConfigError, SamplerConfig
from dossr_jax.config.sampler import Order, Solver
from dossr_jax.diffusion.schedule import Levels, Schedule, asinh_coordinate, make_timesteps

HISTORY = 3
Numbers = Any  # arrays: NumPy on the host, JAX inside jit
# Data deviations that solver "asinh" takes predictions to be made of (docs/samplers.md).
SOLVER_DEVIATIONS = (0.15, 2.0)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Point(NamedTuple):
    """What a denoiser may know of the moment: scalars, but for an eta that varies (b, h, w, c).

    index: of the row in the solver's table.
    """

    t: Numbers
    alpha: Numbers
    sigma: Numbers
    eta: Numbers
    index: Numbers = 0


class SolverRows(NamedTuple):
    """One row per step: the current point and the update to the next.

    `...` is () or the (b, h, w, c) of an eta that varies over the latent.
    """

    t: Numbers  # (rows,)
    alpha: Numbers  # (rows,)
    sigma: Numbers  # (rows,)
    eta: Numbers  # (rows, ...)
    m: Numbers  # (rows, ...)
    shift: Numbers  # (rows, ...)
    c_y: Numbers  # (rows, ...)
    c_x0: Numbers  # (rows, 3, ...): weights of D, of the one before, and of that before it
    c_noise: Numbers  # (rows, ...)
    active: Numbers  # (rows,) bool; inactive rows are padding


class SolverEnds(NamedTuple):
    """A run starts at y = init_lr x_lr + init_noise z and returns m_out y + shift_out x_lr."""

    init_lr: Numbers  # ()
    init_noise: Numbers  # (...)
    m_out: Numbers  # (...)
    shift_out: Numbers  # (...)


class SolverTable(NamedTuple):
    """All that a sampler's run needs, a pytree."""

    rows: SolverRows
    ends: SolverEnds


class Path(NamedTuple):
    """Every step of a run, rows first: network inputs, states and predictions of x0."""

    x: Numbers
    y: Numbers
    x0: Numbers


DenoiseFn = Callable[[jax.Array, Point], jax.Array]
NoiseFn = Callable[[jax.Array], jax.Array]
Carry = tuple[jax.Array, jax.Array, jax.Array]  # y and the last two predictions of x0


def _moments(solver: Solver, lam: np.ndarray, lam_next: np.ndarray) -> tuple[np.ndarray, ...]:
    """Integrals of (l - lam)^k, k = 0, 1, 2, over l from lam_next to lam, weighted by the solver.

    The weight is 2 lam_next^2 / l^3 for the SDE and lam_next / l^2 for the ODE. Written in the
    ratio r = lam_next / lam; r = 0 is the limit. "asinh" has asinh_coordinate's w in place of l.
    """
    r = lam_next / lam
    lam = np.where(np.isinf(lam), 0.0, lam)  # of a first step alone, which has no history
    log_r = np.log(np.where(r > 0, r, 1.0))  # only ever multiplied by powers of r
    if solver == "sde":
        k0 = 1 - r**2
        k1 = -lam * (1 - r) ** 2
        k2 = lam**2 * ((1 - 3 * r) * (1 - r) - 2 * r**2 * log_r)
    elif solver == "asinh":
        k0, k1, k2 = _asinh_moments(lam, lam_next)
    else:
        k0 = 1 - r
        k1 = -lam * (1 - r + r * log_r)
        k2 = lam**2 * (1 - r**2 + 2 * r * log_r)
    return k0, k1, k2


def _asinh_moments(lam: np.ndarray, lam_next: np.ndarray) -> tuple[np.ndarray, ...]:
    """Integrals of (w - w(lam))^k, k = 0, 1, 2, with the weight of the ODE; w of the level l.

    With q = lam_next / l the weight is 1 and q runs from r to 1; Gauss's rule is exact to 1e-9 and
    better there. Where lam_next = 0 the higher two are of no use and 0.
    """
    r = lam_next / lam
    end = lam_next > 0
    k1, k2 = np.zeros_like(r), np.zeros_like(r)
    level = np.where(end, lam_next, 1.0)
    start = asinh_coordinate(lam, SOLVER_DEVIATIONS)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        q = (1 + r + (1 - r) * node) / 2
        offset = asinh_coordinate(level / q, SOLVER_DEVIATIONS) - start
        k1 += np.where(end, (1 - r) * weight / 2 * offset, 0.0)
        k2 += np.where(end, (1 - r) * weight / 2 * offset**2, 0.0)
    return 1 - r, k1, k2


def step_coefficients(
    lam: np.ndarray, *, order: Order = 3, solver: Solver = "sde"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (c_y, c_x0, c_noise) of the steps between falling noise levels.

    `lam` (steps + 1, ...) float64; only the last level may be 0. Results have `steps` rows as in
    SolverTable. The prediction is a polynomial in lam through the last `order` of them (fewer in
    the first steps), integrated exactly; for "asinh" a polynomial in asinh_coordinate(lam), which
    is finite at lam = inf, so that a first step from 6.5e5 leaves a history that is of use. A
    step to lam = 0 returns the last prediction itself:
    extrapolation is at its longest there and amplifies that prediction's error. The SDE of order
    3 is the published one, which keeps the plain backward difference as its slope: it adds the
    right curvature at the wrong place and is formally of second order. The ODE of order 3 is the
    full parabola.
    """
    now, then = lam[:-1], lam[1:]
    if not (now > then).all() or not (now > 0).all() or not (then >= 0).all():
        raise ValueError("noise levels must fall strictly and stay positive before the last")
    k0, k1, k2 = _moments(solver, now, then)
    k1, k2 = (np.where(then > 0, k, 0.0) for k in (k1, k2))
    c_x0 = np.zeros((len(now), HISTORY, *lam.shape[1:]))
    c_x0[:, 0] = k0
    place = asinh_coordinate(now, SOLVER_DEVIATIONS) if solver == "asinh" else now
    gap = np.diff(place, axis=0)
    if order >= 2:  # + k1 (D - D_prev) / gap
        c_x0[1:, 0] += k1[1:] / gap
        c_x0[1:, 1] -= k1[1:] / gap
    if order == 3:  # + bend ((D - D_prev) / gap - (D_prev - D_prev2) / gap_prev)
        slope = 0.0 if solver == "sde" else k1[2:] * gap[1:]
        bend = (k2[2:] + slope) / (place[2:] - place[:-2])
        c_x0[2:, 0] += bend / gap[1:]
        c_x0[2:, 1] -= bend / gap[1:] + bend / gap[:-1]
        c_x0[2:, 2] += bend / gap[:-1]
    r = then / now
    if solver == "sde":
        return r**2, c_x0, then * np.sqrt(1 - r**2)
    return r, c_x0, np.zeros_like(r)


def make_table(
    schedule: Schedule, sampler: SamplerConfig, *, times: np.ndarray | None = None
) -> SolverTable:
    """Table of a sampler, NumPy float64, one row per evaluation of the denoiser.

    Solver "sde" on grid "uniform" is the published sampler of that `order`; "ode" and "asinh" are
    the probability-flow ODE, with predictions taken as polynomials in lam or in asinh_coordinate.
    `start` "lr" begins at t1 - 1 from the noised x_lr and ends at t = 0 with that time's residual
    noise, unless `final_denoise` makes the last target lam = 0, x0 itself. `start` "noise" is the
    plain diffusion (eta = 0, x_lr unused by the solver) from pure noise at T - 1 to x0 itself:
    order 1 is spaced ancestral DDPM ("sde") or DDIM ("ode").

    Args:
      times: the steps + 1 strictly falling times to use in place of the sampler's grid.
    """
    if sampler.start == "noise":
        schedule = schedule.no_shift()
    if times is None:
        times = make_timesteps(schedule, sampler.steps, sampler.grid)
        if sampler.grid == "spaced":  # the denoiser is evaluated at all of them
            return assemble(times, schedule.at(times), None, sampler)
    levels = schedule.at(times)
    last = Levels(*(values[-1:] for values in levels))
    to_x0 = sampler.final_denoise or sampler.start == "noise"
    levels = Levels(*(values[:-1] for values in levels))
    return assemble(times[:-1], levels, None if to_x0 else last, sampler)


def assemble(
    times: np.ndarray, levels: Levels, end: Levels | None, sampler: SamplerConfig
) -> SolverTable:
    """Table of a run that evaluates the denoiser at `times` (n,), where the process has `levels`.

    Args:
      end: the process where the run ends, one row; None ends with x0 itself.
      sampler: its solver, order and start.

    Raises:
      ConfigError: a solver that is of another process.
    """
    if sampler.solver == "chain":
        raise ConfigError("solver chain: is ResShift's; choose sde, ode or asinh")
    from_lr, m = sampler.start == "lr", levels.m
    with np.errstate(divide="ignore"):  # alpha = 0: pure noise
        first = levels.lam
    if (m[0] == 0).all():
        # Any scale of y will do there, as the step forgets it. That of x: y = x = z.
        m[0] = 1.0
        init_noise = np.ones_like(first[0])
    else:
        # x = alpha x_lr + sigma z at t1 - 1, and x = z at T - 1, in y.
        init_noise = first[0] if from_lr else 1 / m[0]
    lam = np.concatenate([first, np.zeros_like(first[:1]) if end is None else end.lam])
    c_y, c_x0, c_noise = step_coefficients(lam, order=sampler.order, solver=sampler.solver)
    rows = SolverRows(
        t=times,
        alpha=levels.alpha,
        sigma=levels.sigma,
        eta=levels.eta,
        m=m,
        shift=levels.shift,
        c_y=c_y,
        c_x0=c_x0,
        c_noise=c_noise,
        active=np.ones(len(times), bool),
    )
    if end is None:
        m_out, shift_out = np.ones_like(first[0]), np.zeros_like(first[0])
    else:
        m_out, shift_out = end.m[0], end.shift[0]
    return SolverTable(rows, SolverEnds(np.float64(from_lr), init_noise, m_out, shift_out))


def one_step_table(t: float, alpha: float, sigma: float) -> SolverTable:
    """One evaluation at time `t` of x = x_lr itself, without noise: its prediction is the result.

    alpha, sigma: how the prediction of x0 follows from the network's output.
    """
    row = SolverRows(
        t=np.array([t], np.float64),
        alpha=np.array([alpha], np.float64),
        sigma=np.array([sigma], np.float64),
        eta=np.zeros(1),
        m=np.ones(1),
        shift=np.zeros(1),
        c_y=np.zeros(1),
        c_x0=np.array([[1.0, 0.0, 0.0]]),
        c_noise=np.zeros(1),
        active=np.ones(1, bool),
    )
    return SolverTable(row, SolverEnds(*map(np.float64, (1, 0, 1, 0))))


def pad_table(table: SolverTable, rows: int) -> SolverTable:
    """The same table with inactive rows appended up to `rows`: one shape for many step counts."""
    steps = len(table.rows.t)
    if steps > rows:
        raise ValueError(f"a table of {steps} steps does not fit into {rows} rows")

    def pad(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, rows - steps)] + [(0, 0)] * (values.ndim - 1), mode="edge")

    padded = SolverRows(*map(pad, table.rows))
    return table._replace(rows=padded._replace(active=np.arange(rows) < steps))


def cast(table: SolverTable, dtype: jax.typing.DTypeLike) -> SolverTable:
    """The table in the dtype of a run; float64 coefficients are rounded here, once."""
    return jax.tree.map(lambda a: a if a.dtype == bool else a.astype(dtype), table)


def sample(
    denoise_fn: DenoiseFn,
    x_lr: jax.Array,
    table: SolverTable,
    noise_init: jax.Array,
    noise_fn: NoiseFn,
    *,
    gradient_steps: int | None = None,
) -> jax.Array:
    """Run a solver: the latent (b, h, w, c) that is to be decoded, in the dtype of `x_lr`.

    `denoise_fn(x, point)` predicts x0 from the network input x (b, h, w, c); `x_lr` is the LR
    latent, `noise_init` its start noise and `noise_fn(i)` the noise of step i (a traced int32),
    all of one shape. Float32 or float64: the state reaches 6.5e5 at the start, too much for
    bfloat16. Padded rows call neither function; under `vmap` over tables they would.

    `gradient_steps`: how many of the last rows, none of them padded, gradients flow through; None
    means all. They are unrolled.
    """
    run = denoise_fn, x_lr, table, noise_init, noise_fn
    return _scan(*run, keep_path=False, gradient_steps=gradient_steps)[0]


def sample_path(
    denoise_fn: DenoiseFn,
    x_lr: jax.Array,
    table: SolverTable,
    noise_init: jax.Array,
    noise_fn: NoiseFn,
) -> tuple[jax.Array, Path]:
    """:func:`sample` with every step beside it; padded rows of the path hold zeros."""
    return _scan(denoise_fn, x_lr, table, noise_init, noise_fn, keep_path=True)


def _scan(
    denoise_fn: DenoiseFn,
    x_lr: jax.Array,
    table: SolverTable,
    noise_init: jax.Array,
    noise_fn: NoiseFn,
    *,
    keep_path: bool,
    gradient_steps: int | None = None,
) -> tuple[jax.Array, Any]:
    rows, ends = cast(table, x_lr.dtype)
    blank = jnp.zeros_like(x_lr)

    def advance(carry: Carry, i: jax.Array, row: SolverRows) -> tuple[Carry, Path | None]:
        y, x0_prev, x0_prev2 = carry
        x = row.m * y + row.shift * x_lr
        x0 = denoise_fn(x, Point(row.t, row.alpha, row.sigma, row.eta, i)).astype(x.dtype)
        history = row.c_x0[0] * x0 + row.c_x0[1] * x0_prev + row.c_x0[2] * x0_prev2
        y_next = row.c_y * y + history + row.c_noise * noise_fn(i).astype(x.dtype)
        return (y_next, x0, x0_prev), Path(x, y, x0) if keep_path else None

    def skip(carry: Carry, i: jax.Array, row: SolverRows) -> tuple[Carry, Path | None]:
        return carry, Path(blank, blank, blank) if keep_path else None

    def body(carry: Carry, step: tuple[jax.Array, SolverRows]) -> tuple[Carry, Path | None]:
        return jax.lax.cond(step[1].active, advance, skip, carry, *step)

    y = ends.init_lr * x_lr + ends.init_noise * noise_init.astype(x_lr.dtype)
    carry, steps = (y, blank, blank), (jnp.arange(len(rows.t), dtype=jnp.int32), rows)
    if gradient_steps is not None:
        # The backward pass does not run through the first steps. The last ones are no loop: on a
        # CPU, XLA runs the backward pass of a loop with a conditional nine times slower.
        count = min(gradient_steps, len(rows.t))
        first = jax.tree.map(lambda a: a[:-count], steps)
        carry = jax.lax.stop_gradient(jax.lax.scan(body, carry, first)[0])
        for i in range(-count, 0):
            carry, _ = advance(carry, *jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), steps))
        return ends.m_out * carry[0] + ends.shift_out * x_lr, None
    if not keep_path:
        rows = jax.tree.map(jnp.asarray, rows)

        def step(i: jax.Array, carry: Carry) -> Carry:
            return advance(carry, i, jax.tree.map(lambda a: a[i], rows))[0]

        # Padded rows come last. Without a condition in the loop a GPU need not wait for the host.
        y, _, _ = jax.lax.fori_loop(0, jnp.sum(rows.active), step, carry)
        return ends.m_out * y + ends.shift_out * x_lr, None
    (y, _, _), path = jax.lax.scan(body, carry, steps)
    return ends.m_out * y + ends.shift_out * x_lr, path
