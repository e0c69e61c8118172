"""Laws of the solver tables and of their loop."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.solvers import SCHEDULE, SHAPE, denoise, draws, point_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dossr_jax.config import SamplerConfig
from dossr_jax.config.sampler import Solver, TimeGrid
from dossr_jax.diffusion.schedule import Schedule, asinh_coordinate
from dossr_jax.diffusion.solver import (
    SOLVER_DEVIATIONS,
    cast,
    make_table,
    pad_table,
    sample,
    sample_path,
    step_coefficients,
)

pytestmark = pytest.mark.usefixtures("x64")
laws = settings(derandomize=True, deadline=None, max_examples=60)
some_laws = settings(derandomize=True, deadline=None, max_examples=8)  # these compile

SOLVERS = get_args(Solver)
options = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 50),
        "order": st.sampled_from([1, 2, 3]),
        "solver": st.sampled_from(SOLVERS),
        "grid": st.sampled_from(get_args(TimeGrid)),
        "start": st.sampled_from(["lr", "noise"]),
        "final_denoise": st.booleans(),
    }
)


# --- tables ---------------------------------------------------------------------------------


@laws
@given(options)
def test_every_row_preserves_the_marginal(opts):
    """With the exact prediction D = x0, a row maps y = x0 + lam eps to x0 + lam_next eps'."""
    table = make_table(SCHEDULE, SamplerConfig(**opts))
    lam = table.rows.sigma / table.rows.m
    to_x0 = opts["final_denoise"] or opts["start"] == "noise" or opts["grid"] == "spaced"
    lam_next = np.append(lam[1:], 0.0 if to_x0 else SCHEDULE.lam[0])
    np.testing.assert_allclose(table.rows.c_y + table.rows.c_x0.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(
        table.rows.c_y**2 * lam**2 + table.rows.c_noise**2, lam_next**2, rtol=1e-11, atol=0
    )
    if opts["solver"] != "sde":
        assert not table.rows.c_noise.any()
    # x = m y + shift x_lr then has mean alpha ((1 - eta) x0 + eta x_lr) and variance sigma^2.
    np.testing.assert_allclose(table.rows.m, table.rows.alpha * (1 - table.rows.eta), rtol=1e-14)
    np.testing.assert_allclose(table.rows.m + table.rows.shift, table.rows.alpha, rtol=1e-14)
    np.testing.assert_allclose(table.rows.alpha**2 + table.rows.sigma**2, 1, rtol=1e-14)
    ends = (
        (1, 0) if to_x0 else (SCHEDULE.alpha[0] * np.array([1 - SCHEDULE.eta[0], SCHEDULE.eta[0]]))
    )
    np.testing.assert_allclose((table.ends.m_out, table.ends.shift_out), ends, rtol=1e-14)


@laws
@given(options)
def test_history_is_empty_before_it_exists(opts):
    c_x0 = make_table(SCHEDULE, SamplerConfig(**opts)).rows.c_x0
    assert not c_x0[:, opts["order"] :].any()
    assert not c_x0[0, 1:].any() and not c_x0[1:2, 2:].any()


def test_start_is_the_noised_lr_latent_or_the_noise_itself():
    x_lr, z, _ = draws(1)
    for start in ("lr", "noise"):
        table = make_table(SCHEDULE, SamplerConfig(steps=1, start=start))
        y = table.ends.init_lr * x_lr + table.ends.init_noise * z
        x = table.rows.m[0] * y + table.rows.shift[0] * x_lr
        expected = z if start == "noise" else SCHEDULE.alpha[499] * x_lr + SCHEDULE.sigma[499] * z
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-14)


@laws
@given(options)
def test_a_step_to_lam_zero_returns_the_prediction(opts):
    table = make_table(SCHEDULE, SamplerConfig(**opts | {"final_denoise": True}))
    assert table.rows.c_y[-1] == table.rows.c_noise[-1] == 0
    np.testing.assert_array_equal(table.rows.c_x0[-1], [1, 0, 0])
    assert table.ends.m_out == 1 and table.ends.shift_out == 0


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_polynomial_predictions_are_integrated_exactly(solver, order):
    """A D that is a polynomial in lam of degree < order gives the exact integral of its weight.

    The published order 3 is exact for straight lines only: see step_coefficients.
    """
    lam = np.array([9.0, 5.0, 3.0, 1.2])
    degree = 1 if solver == "sde" else order - 1
    _, c_x0, _ = step_coefficients(lam, order=order, solver=solver)
    fine = np.linspace(1.2, 3.0, 200_001)
    weight = 2 * 1.2**2 / fine**3 if solver == "sde" else 1.2 / fine**2
    place, fine_place = lam, fine
    if solver == "asinh":  # there a polynomial in the coordinate, not in lam
        place, fine_place = (asinh_coordinate(level, SOLVER_DEVIATIONS) for level in (lam, fine))
    for power in range(degree + 1):
        history = c_x0[2] @ (place[[2, 1, 0]] ** power)
        integral = np.trapezoid(weight * fine_place**power, fine)
        assert history == pytest.approx(integral, rel=1e-8)


def test_asinh_integrates_a_first_step_from_far_away():
    """The weight is 1 in q = lam_next / lam, which a fine sum over q shows."""
    lam = np.array([SCHEDULE.lam[-1], 0.6, 0.03])
    _, c_x0, _ = step_coefficients(lam, order=2, solver="asinh")
    q = np.linspace(lam[2] / lam[1], 1, 400_001)
    value = np.trapezoid(asinh_coordinate(lam[2] / q, SOLVER_DEVIATIONS), q)
    assert c_x0[1] @ [*asinh_coordinate(lam[1::-1], SOLVER_DEVIATIONS), 0] == pytest.approx(
        value, rel=1e-9
    )


# --- the loop -------------------------------------------------------------------------------


def _python_loop(denoise, x_lr, table, noise_init, noise):
    y = table.ends.init_lr * x_lr + table.ends.init_noise * noise_init
    older = [jnp.zeros_like(y)] * 2
    for i in range(len(table.rows.t)):
        x0 = denoise(table.rows.m[i] * y + table.rows.shift[i] * x_lr, point_of(table, i))
        y = table.rows.c_y[i] * y + table.rows.c_noise[i] * noise[i]
        y += sum(c * d for c, d in zip(table.rows.c_x0[i], [x0, *older], strict=True))
        older = [x0, older[0]]
    return table.ends.m_out * y + table.ends.shift_out * x_lr


@jax.jit
def _run(table, x_lr, noise_init, noise):
    return sample(denoise, x_lr, table, noise_init, lambda i: noise[i])


@some_laws
@given(options)
def test_scan_equals_a_python_loop_and_padding_changes_nothing(opts):
    table = make_table(SCHEDULE, SamplerConfig(**opts))
    x_lr, noise_init, noise = draws(50)
    out = _run(table, x_lr, noise_init, noise)
    assert out.dtype == np.float64 and out.shape == SHAPE
    expected = _python_loop(denoise, x_lr, table, noise_init, noise)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-11)
    # Not bit-equal: XLA unrolls and fuses a loop of one row differently.
    padded = _run(pad_table(table, 64), x_lr, noise_init, noise)
    np.testing.assert_allclose(padded, out, rtol=1e-10, atol=1e-11)


def test_one_program_serves_all_step_counts():
    traces = []

    @jax.jit
    def run(table):
        traces.append(None)
        return sample(denoise, x_lr, table, noise_init, lambda i: noise[i])

    x_lr, noise_init, noise = draws(50)
    for steps in (1, 5, 50):
        run(pad_table(make_table(SCHEDULE, SamplerConfig(steps=steps)), 50))
    assert len(traces) == 1


def test_padding_calls_no_denoiser():
    calls = []

    def counting(x, point):
        jax.debug.callback(lambda t: calls.append(float(t)), point.t)
        return x

    x_lr, noise_init, noise = draws(3)
    table = pad_table(make_table(SCHEDULE, SamplerConfig(steps=3)), 9)
    jax.block_until_ready(sample(counting, x_lr, table, noise_init, lambda i: noise[i]))
    jax.effects_barrier()
    assert sorted(calls) == [166, 333, 499]


def test_path_holds_what_the_denoiser_saw():
    x_lr, noise_init, noise = draws(4)
    table = make_table(SCHEDULE, SamplerConfig(steps=4))
    args = (denoise, x_lr, table, noise_init, lambda i: noise[i])
    out, path = sample_path(*args)
    np.testing.assert_allclose(out, sample(*args), rtol=1e-13)
    for i in range(4):
        np.testing.assert_allclose(
            path.x[i], table.rows.m[i] * path.y[i] + table.rows.shift[i] * x_lr, rtol=0, atol=1e-13
        )
        x0 = denoise(path.x[i], point_of(table, i))
        np.testing.assert_allclose(path.x0[i], x0, rtol=0, atol=1e-13)


def test_float32_runs_in_float32_and_stays_close():
    x_lr, noise_init, noise = draws(5)
    table = make_table(SCHEDULE, SamplerConfig(steps=5))
    exact = sample(denoise, x_lr, table, noise_init, lambda i: noise[i])
    single = [a.astype(jnp.float32) for a in (x_lr, noise_init, noise)]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out = sample(denoise, single[0], table, single[1], lambda i: single[2][i])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=0, atol=5e-6)
    assert {a.dtype for a in jax.tree.leaves(cast(table, np.float32))} == {
        np.dtype(np.float32),
        np.dtype(bool),
    }


def _varying() -> Schedule:
    """A shift that differs along the width of SHAPE."""
    power = np.array([0.7, 1.0, 1.5]).reshape(1, 1, 1, 3, 1)
    eta = SCHEDULE.eta.reshape(-1, 1, 1, 1, 1) ** power
    return Schedule(SCHEDULE.alpha, SCHEDULE.sigma, eta, SCHEDULE.t1)


def _pixel(schedule: Schedule, i: int) -> Schedule:
    return Schedule(schedule.alpha, schedule.sigma, schedule.eta[:, 0, 0, i, 0], schedule.t1)


# --- a shift that varies over the latent ----------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", get_args(TimeGrid))
def test_constant_eta_array_equals_the_scalar(solver, grid):
    eta = np.broadcast_to(SCHEDULE.eta[:, None, None, None, None], (1000, 1, 4, 3, 1))
    constant = Schedule(SCHEDULE.alpha, SCHEDULE.sigma, eta, SCHEDULE.t1)
    x_lr, noise_init, noise = draws(5)
    out, expected = (
        sample(
            denoise,
            x_lr,
            pad_table(make_table(schedule, SamplerConfig(steps=5, solver=solver, grid=grid)), 6),
            noise_init,
            lambda i: noise[i],
        )
        for schedule in (constant, SCHEDULE)
    )
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("final_denoise", [False, True])
def test_varying_eta_equals_one_run_a_pixel(solver, final_denoise):
    varying = _varying()
    x_lr, noise_init, noise = draws(6)
    opts = {"steps": 6, "solver": solver, "final_denoise": final_denoise}
    out = sample(
        denoise, x_lr, make_table(varying, SamplerConfig(**opts)), noise_init, lambda i: noise[i]
    )
    for i in range(SHAPE[2]):
        table = make_table(_pixel(varying, i), SamplerConfig(**opts))
        column = sample(denoise, x_lr, table, noise_init, lambda i: noise[i])[:, :, i]
        np.testing.assert_allclose(out[:, :, i], column, rtol=0, atol=1e-11)


# --- errors ---------------------------------------------------------------------------------


def test_bad_levels_and_rows_raise():
    with pytest.raises(ValueError, match="fall strictly"):
        step_coefficients(np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="does not fit into 3 rows"):
        pad_table(make_table(SCHEDULE, SamplerConfig(steps=5)), 3)


def test_gradients_flow_through_the_last_steps_alone():
    """As if the earlier steps' predictions were constants."""
    table, (x_lr, start, noise) = make_table(SCHEDULE, SamplerConfig(steps=4, order=2)), draws(4)

    def loss(scale, last=None, gradient_steps=None):
        def scaled(x, point):
            learns = last is None or jnp.isin(point.t, table.rows.t[-last:])
            return jnp.where(learns, scale, 1.5) * denoise(x, point)

        run = scaled, x_lr, table, start, lambda i: noise[i]
        return jnp.sum(sample(*run, gradient_steps=gradient_steps) ** 2)

    gradient = jax.grad(loss)
    for steps in (1, 2):
        np.testing.assert_allclose(
            gradient(1.5, gradient_steps=steps), gradient(1.5, last=steps), rtol=1e-12
        )
    assert gradient(1.5, gradient_steps=4) == gradient(1.5)
    assert abs(gradient(1.5, gradient_steps=1) / gradient(1.5) - 1) > 1e-3
