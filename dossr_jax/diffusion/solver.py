"""Samplers as tables: coefficients in float64 on the host, then one `lax.scan`.

In the y-view (docs/method.md) the state is y = x0 + lam eps and the network's input is
x = m y + shift x_lr with m = alpha (1 - eta), shift = alpha eta. Every solver here is one row

    y_next = c_y y + c_x0[0] D + c_x0[1] D_prev + c_x0[2] D_prev2 + c_noise z

where D are predictions of x0; a shorter history is zero coefficients, so all of them share one
loop. Source: DoSSR, arXiv 2409.17778, for the stochastic solvers; the exponential integrals are
derived in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from dossr_jax.diffusion.schedule import Grid, Schedule, make_timesteps, span_coordinate

Kind = Literal["sde", "ode", "span"]
Start = Literal["lr", "noise"]
Order = Literal[1, 2, 3]
KIND_NAMES = get_args(Kind)
START_NAMES = get_args(Start)
HISTORY = 3
# Deviations of the data that solver "span" takes its predictions to be made of (docs/method.md).
SOLVER_SPAN = (0.15, 2.0)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
ENDS = ("init_lr", "init_noise", "m_out", "shift_out")  # the table's last fields, not per row


class Point(NamedTuple):
    """What a denoiser may know of the moment: scalars, but for an eta that varies (b, h, w, c)."""

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    eta: jax.Array


class SolverTable(NamedTuple):
    """One row a step, a pytree; `...` is () or the (b, h, w, c) of an eta that varies.

    Rows hold the current point and the update to the next. The last four fields are the run's
    ends: y = init_lr x_lr + init_noise z, and the result is m_out y + shift_out x_lr.
    """

    t: np.ndarray  # (rows,)
    alpha: np.ndarray  # (rows,)
    sigma: np.ndarray  # (rows,)
    eta: np.ndarray  # (rows, ...)
    m: np.ndarray  # (rows, ...)
    shift: np.ndarray  # (rows, ...)
    c_y: np.ndarray  # (rows, ...)
    c_x0: np.ndarray  # (rows, 3, ...): weights of D, of the one before, and of that before it
    c_noise: np.ndarray  # (rows, ...)
    active: np.ndarray  # (rows,) bool; False is padding
    init_lr: np.ndarray  # ()
    init_noise: np.ndarray  # (...)
    m_out: np.ndarray  # (...)
    shift_out: np.ndarray  # (...)


class Path(NamedTuple):
    """Every step of a run, rows first: network inputs, states and predictions of x0."""

    x: jax.Array
    y: jax.Array
    x0: jax.Array


def _moments(kind: Kind, lam: np.ndarray, lam_next: np.ndarray) -> tuple[np.ndarray, ...]:
    """Integrals of (l - lam)^k, k = 0, 1, 2, over l from lam_next to lam, weighted by the solver.

    The weight is 2 lam_next^2 / l^3 for the SDE and lam_next / l^2 for the ODE. Written in the
    ratio r = lam_next / lam; r = 0 is the limit. "span" has span_coordinate's w in place of l.
    """
    r = lam_next / lam
    log_r = np.log(np.where(r > 0, r, 1.0))  # only ever multiplied by powers of r
    if kind == "sde":
        k0 = 1 - r**2
        k1 = -lam * (1 - r) ** 2
        k2 = lam**2 * ((1 - 3 * r) * (1 - r) - 2 * r**2 * log_r)
    elif kind == "span":
        k0, k1, k2 = _span_moments(lam, lam_next)
    else:
        k0 = 1 - r
        k1 = -lam * (1 - r + r * log_r)
        k2 = lam**2 * (1 - r**2 + 2 * r * log_r)
    return k0, k1, k2


def _span_moments(lam: np.ndarray, lam_next: np.ndarray) -> tuple[np.ndarray, ...]:
    """Integrals of (w - w(lam))^k, k = 0, 1, 2, with the weight of the ODE; w of the level l.

    With q = lam_next / l the weight is 1 and q runs from r to 1; Gauss's rule is exact to 1e-9 and
    better there. Where lam_next = 0 the higher two are of no use and 0.
    """
    r = lam_next / lam
    end = lam_next > 0
    k1, k2 = np.zeros_like(r), np.zeros_like(r)
    level = np.where(end, lam_next, 1.0)
    start = span_coordinate(lam, SOLVER_SPAN)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        q = (1 + r + (1 - r) * node) / 2
        offset = span_coordinate(level / q, SOLVER_SPAN) - start
        k1 += np.where(end, (1 - r) * weight / 2 * offset, 0.0)
        k2 += np.where(end, (1 - r) * weight / 2 * offset**2, 0.0)
    return 1 - r, k1, k2


def step_coefficients(
    lam: np.ndarray, *, order: Order = 3, kind: Kind = "sde"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (c_y, c_x0, c_noise) of the steps between falling noise levels.

    `lam` (steps + 1, ...) float64; only the last level may be 0. Results have `steps` rows as in
    SolverTable. The prediction is a polynomial in lam through the last `order` of them (fewer in
    the first steps), integrated exactly; for "span" a polynomial in span_coordinate(lam), which
    is finite at lam = inf, so that a first step from 6.5e5 leaves a history that is of use. A
    step to lam = 0 returns the last prediction itself:
    extrapolation is at its longest there and amplifies that prediction's error. The SDE of order
    3 is the published one, which keeps the plain backward difference as its slope: it adds the
    right curvature at the wrong place and is formally of second order. The ODE of order 3 is the
    full parabola.
    """
    if order not in get_args(Order):
        raise ValueError(f"order is 1, 2 or 3, not {order}")
    if kind not in KIND_NAMES:
        raise ValueError(f"kind is one of {', '.join(KIND_NAMES)}, not {kind!r}")
    now, then = lam[:-1], lam[1:]
    if not (now > then).all() or not (now > 0).all() or not (then >= 0).all():
        raise ValueError("noise levels must fall strictly and stay positive before the last")
    k0, k1, k2 = _moments(kind, now, then)
    k1, k2 = (np.where(then > 0, k, 0.0) for k in (k1, k2))
    c_x0 = np.zeros((len(now), HISTORY, *lam.shape[1:]))
    c_x0[:, 0] = k0
    place = span_coordinate(now, SOLVER_SPAN) if kind == "span" else now
    gap = np.diff(place, axis=0)
    if order >= 2:  # + k1 (D - D_prev) / gap
        c_x0[1:, 0] += k1[1:] / gap
        c_x0[1:, 1] -= k1[1:] / gap
    if order == 3:  # + bend ((D - D_prev) / gap - (D_prev - D_prev2) / gap_prev)
        slope = 0.0 if kind == "sde" else k1[2:] * gap[1:]
        bend = (k2[2:] + slope) / (place[2:] - place[:-2])
        c_x0[2:, 0] += bend / gap[1:]
        c_x0[2:, 1] -= bend / gap[1:] + bend / gap[:-1]
        c_x0[2:, 2] += bend / gap[:-1]
    r = then / now
    if kind == "sde":
        return r**2, c_x0, then * np.sqrt(1 - r**2)
    return r, c_x0, np.zeros_like(r)


def table_of(schedule: Schedule, sampler: Any) -> SolverTable:
    """:func:`make_table` as the fields of a SamplerConfig, or of complete Settings, say."""
    return make_table(
        schedule,
        steps=sampler.steps,
        order=sampler.order,
        kind=sampler.solver,
        grid=sampler.grid,
        start=sampler.start,
        final_denoise=sampler.final_denoise,
    )


def make_table(
    schedule: Schedule,
    *,
    steps: int,
    order: Order = 3,
    kind: Kind = "sde",
    grid: Grid = "uniform",
    start: Start = "lr",
    final_denoise: bool = False,
) -> SolverTable:
    """Table of a sampler with `steps` evaluations of the denoiser, NumPy float64.

    `kind` "sde" with grid "uniform" is the published sampler of that `order`; "ode" and "span" the
    probability-flow ODE, with predictions taken as polynomials in lam or in span_coordinate. Grid
    and kind "span" with order 2 are the scheme for few steps (docs/method.md). `start` "lr" begins
    at t1 - 1 from the noised x_lr and ends at t = 0 with that time's residual noise, unless
    `final_denoise` makes the last target lam = 0, x0 itself. `start` "noise" is the plain
    diffusion (eta = 0, x_lr unused by the solver) from pure noise at T - 1 to x0 itself: order 1
    is spaced ancestral DDPM ("sde") or DDIM ("ode").
    Bad options raise a one-line ValueError.
    """
    if start not in START_NAMES:
        raise ValueError(f"start is one of {', '.join(START_NAMES)}, not {start!r}")
    if start == "noise":
        schedule = schedule.no_shift()
    t = make_timesteps(schedule, steps, grid)
    levels = schedule.at(t)
    lam, m, shift = levels.lam, levels.m, levels.shift
    m_out, shift_out = m[-1], shift[-1]
    if final_denoise or start == "noise":
        lam[-1], m_out, shift_out = 0.0, np.ones_like(m_out), np.zeros_like(shift_out)
    c_y, c_x0, c_noise = step_coefficients(lam, order=order, kind=kind)
    return SolverTable(
        t=t[:-1],
        alpha=levels.alpha[:-1],
        sigma=levels.sigma[:-1],
        eta=levels.eta[:-1],
        m=m[:-1],
        shift=shift[:-1],
        c_y=c_y,
        c_x0=c_x0,
        c_noise=c_noise,
        active=np.ones(steps, bool),
        init_lr=np.float64(start == "lr"),
        # x = alpha x_lr + sigma z at t1 - 1, and x = z at T - 1, in y.
        init_noise=lam[0] if start == "lr" else 1 / m[0],
        m_out=m_out,
        shift_out=shift_out,
    )


def pad_table(table: SolverTable, rows: int) -> SolverTable:
    """The same table with inactive rows appended up to `rows`: one shape for many step counts."""
    extra = rows - len(table.t)
    if extra < 0:
        raise ValueError(f"a table of {len(table.t)} steps does not fit into {rows} rows")

    def pad(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, extra)] + [(0, 0)] * (values.ndim - 1), mode="edge")

    padded = {name: pad(a) for name, a in table._asdict().items() if name not in ENDS}
    padded["active"] = np.arange(rows) < len(table.t)
    return table._replace(**padded)


def cast(table: SolverTable, dtype: jax.typing.DTypeLike) -> SolverTable:
    """The table in the dtype of a run; float64 coefficients round here, once."""
    return SolverTable(*(a if a.dtype == bool else a.astype(dtype) for a in table))


def sample(
    denoise_fn: Callable[[jax.Array, Point], jax.Array],
    x_lr: jax.Array,
    table: SolverTable,
    noise_init: jax.Array,
    noise_fn: Callable[[jax.Array], jax.Array],
    *,
    keep_path: bool = False,
) -> jax.Array | tuple[jax.Array, Path]:
    """Run a solver: the latent (b, h, w, c) that is to be decoded, in the dtype of `x_lr`.

    `denoise_fn(x, point)` predicts x0 from the network input x (b, h, w, c); `x_lr` is the LR
    latent, `noise_init` its start noise and `noise_fn(i)` the noise of step i (a traced int32),
    all of one shape. Float32 or float64: the state reaches 6.5e5 at the start, too much for
    bfloat16. Padded rows call neither function; under `vmap` over tables they would. With
    `keep_path` a pair (latent, Path) returns, padded rows holding zeros.
    """
    table = cast(table, x_lr.dtype)
    rows = (jnp.arange(len(table.t), dtype=jnp.int32), *table[: -len(ENDS)])

    def advance(carry, row):
        i, t, alpha, sigma, eta, m, shift, c_y, c_x0, c_noise, _ = row
        y, x0_prev, x0_prev2 = carry
        x = m * y + shift * x_lr
        x0 = denoise_fn(x, Point(t, alpha, sigma, eta)).astype(x.dtype)
        history = c_x0[0] * x0 + c_x0[1] * x0_prev + c_x0[2] * x0_prev2
        y_next = c_y * y + history + c_noise * noise_fn(i).astype(x.dtype)
        return (y_next, x0, x0_prev), Path(x, y, x0) if keep_path else None

    def skip(carry, row):
        blank = jnp.zeros_like(x_lr)
        return carry, Path(blank, blank, blank) if keep_path else None

    def body(carry, row):
        return jax.lax.cond(row[-1], advance, skip, carry, row)

    y = table.init_lr * x_lr + table.init_noise * noise_init.astype(x_lr.dtype)
    blank = jnp.zeros_like(x_lr)
    (y, _, _), path = jax.lax.scan(body, (y, blank, blank), rows)
    out = table.m_out * y + table.shift_out * x_lr
    return (out, path) if keep_path else out
