"""Laws of the solver tables and of their loop, and trajectories of the release."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dossr_jax.config import ProcessConfig
from dossr_jax.diffusion.process import eps_to_x0
from dossr_jax.diffusion.schedule import GRID_NAMES, Schedule, make_schedule, make_timesteps
from dossr_jax.diffusion.solver import (
    KIND_NAMES,
    START_NAMES,
    Point,
    SolverTable,
    cast,
    make_table,
    pad_table,
    sample,
    step_coefficients,
)

GOLDEN = pathlib.Path(__file__).parent / "data" / "golden"
SCHEDULE = make_schedule(ProcessConfig())
SHAPE = (2, 4, 3, 2)
laws = settings(derandomize=True, deadline=None, max_examples=60)
some_laws = settings(derandomize=True, deadline=None, max_examples=8)  # these compile

options = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 50),
        "order": st.sampled_from([1, 2, 3]),
        "kind": st.sampled_from(KIND_NAMES),
        "grid": st.sampled_from(GRID_NAMES),
        "start": st.sampled_from(START_NAMES),
        "final_denoise": st.booleans(),
    }
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as arrays:
        yield arrays


def _draws(steps: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    x_lr, noise_init = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(2))
    return x_lr, noise_init, jnp.asarray(rng.standard_normal((steps, *SHAPE)))


def _point(table: SolverTable, i: int) -> Point:
    return Point(table.t[i], table.alpha[i], table.sigma[i], table.eta[i])


def _denoise(x, point):
    """A smooth nonlinear denoiser that uses all it is given."""
    return jnp.tanh(x * point.alpha - 0.3 * point.sigma) + 0.1 * jnp.cos(point.t / 100) * point.eta


def _varying() -> Schedule:
    """A shift that differs along the width of SHAPE."""
    power = np.array([0.7, 1.0, 1.5]).reshape(1, 1, 1, 3, 1)
    eta = SCHEDULE.eta.reshape(-1, 1, 1, 1, 1) ** power
    return Schedule(SCHEDULE.alpha, SCHEDULE.sigma, eta, SCHEDULE.t1)


def _pixel(schedule: Schedule, i: int) -> Schedule:
    return Schedule(schedule.alpha, schedule.sigma, schedule.eta[:, 0, 0, i, 0], schedule.t1)


# --- tables ---------------------------------------------------------------------------------


@laws
@given(options)
def test_every_row_preserves_the_marginal(opts):
    """With the exact prediction D = x0, a row maps y = x0 + lam eps to x0 + lam_next eps'."""
    table = make_table(SCHEDULE, **opts)
    lam = table.sigma / table.m
    to_x0 = opts["final_denoise"] or opts["start"] == "noise"
    lam_next = np.append(lam[1:], 0.0 if to_x0 else SCHEDULE.lam[0])
    np.testing.assert_allclose(table.c_y + table.c_x0.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(
        table.c_y**2 * lam**2 + table.c_noise**2, lam_next**2, rtol=1e-11, atol=0
    )
    if opts["kind"] == "ode":
        assert not table.c_noise.any()
    # x = m y + shift x_lr then has mean alpha ((1 - eta) x0 + eta x_lr) and variance sigma^2.
    np.testing.assert_allclose(table.m, table.alpha * (1 - table.eta), rtol=1e-14)
    np.testing.assert_allclose(table.m + table.shift, table.alpha, rtol=1e-14)
    np.testing.assert_allclose(table.alpha**2 + table.sigma**2, 1, rtol=1e-14)
    ends = (
        (1, 0) if to_x0 else (SCHEDULE.alpha[0] * np.array([1 - SCHEDULE.eta[0], SCHEDULE.eta[0]]))
    )
    np.testing.assert_allclose((table.m_out, table.shift_out), ends, rtol=1e-14)


@laws
@given(options)
def test_history_is_empty_before_it_exists(opts):
    c_x0 = make_table(SCHEDULE, **opts).c_x0
    assert not c_x0[:, opts["order"] :].any()
    assert not c_x0[0, 1:].any() and not c_x0[1:2, 2:].any()


def test_start_is_the_noised_lr_latent_or_the_noise_itself():
    x_lr, z, _ = _draws(1)
    for start in START_NAMES:
        table = make_table(SCHEDULE, steps=1, start=start)
        y = table.init_lr * x_lr + table.init_noise * z
        x = table.m[0] * y + table.shift[0] * x_lr
        expected = z if start == "noise" else SCHEDULE.alpha[499] * x_lr + SCHEDULE.sigma[499] * z
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-14)


@laws
@given(options)
def test_a_step_to_lam_zero_returns_the_prediction(opts):
    table = make_table(SCHEDULE, **(opts | {"final_denoise": True}))
    assert table.c_y[-1] == table.c_noise[-1] == 0
    np.testing.assert_array_equal(table.c_x0[-1], [1, 0, 0])
    assert table.m_out == 1 and table.shift_out == 0


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_polynomial_predictions_are_integrated_exactly(kind, order):
    """A D that is a polynomial in lam of degree < order gives the exact integral of its weight.

    The published order 3 is exact for straight lines only: see step_coefficients.
    """
    lam = np.array([9.0, 5.0, 3.0, 1.2])
    degree = 1 if kind == "sde" else order - 1
    _, c_x0, _ = step_coefficients(lam, order=order, kind=kind)
    fine = np.linspace(1.2, 3.0, 200_001)
    weight = 2 * 1.2**2 / fine**3 if kind == "sde" else 1.2 / fine**2
    for power in range(degree + 1):
        history = c_x0[2] @ (lam[[2, 1, 0]] ** power)
        assert history == pytest.approx(np.trapezoid(weight * fine**power, fine), rel=1e-8)


# --- the loop -------------------------------------------------------------------------------


def _python_loop(denoise, x_lr, table, noise_init, noise):
    y = table.init_lr * x_lr + table.init_noise * noise_init
    older = [jnp.zeros_like(y)] * 2
    for i in range(len(table.t)):
        x0 = denoise(table.m[i] * y + table.shift[i] * x_lr, _point(table, i))
        y = table.c_y[i] * y + table.c_noise[i] * noise[i]
        y += sum(c * d for c, d in zip(table.c_x0[i], [x0, *older], strict=True))
        older = [x0, older[0]]
    return table.m_out * y + table.shift_out * x_lr


@jax.jit
def _run(table, x_lr, noise_init, noise):
    return sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])


@some_laws
@given(options)
def test_scan_equals_a_python_loop_and_padding_changes_nothing(opts):
    table = make_table(SCHEDULE, **opts)
    x_lr, noise_init, noise = _draws(50)
    out = _run(table, x_lr, noise_init, noise)
    assert out.dtype == np.float64 and out.shape == SHAPE
    expected = _python_loop(_denoise, x_lr, table, noise_init, noise)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-11)
    # Not bit-equal: XLA unrolls and fuses a loop of one row differently.
    padded = _run(pad_table(table, 64), x_lr, noise_init, noise)
    np.testing.assert_allclose(padded, out, rtol=1e-10, atol=1e-11)


def test_one_program_serves_all_step_counts():
    traces = []

    @jax.jit
    def run(table):
        traces.append(None)
        return sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])

    x_lr, noise_init, noise = _draws(50)
    for steps in (1, 5, 50):
        run(pad_table(make_table(SCHEDULE, steps=steps), 50))
    assert len(traces) == 1


def test_padding_calls_no_denoiser():
    calls = []

    def counting(x, point):
        jax.debug.callback(lambda t: calls.append(float(t)), point.t)
        return x

    x_lr, noise_init, noise = _draws(3)
    table = pad_table(make_table(SCHEDULE, steps=3), 9)
    jax.block_until_ready(sample(counting, x_lr, table, noise_init, lambda i: noise[i]))
    jax.effects_barrier()
    assert sorted(calls) == [166, 333, 499]


def test_path_holds_what_the_denoiser_saw():
    x_lr, noise_init, noise = _draws(4)
    table = make_table(SCHEDULE, steps=4)
    args = (_denoise, x_lr, table, noise_init, lambda i: noise[i])
    out, path = sample(*args, keep_path=True)
    np.testing.assert_allclose(out, sample(*args), rtol=1e-13)
    for i in range(4):
        np.testing.assert_allclose(
            path.x[i], table.m[i] * path.y[i] + table.shift[i] * x_lr, rtol=0, atol=1e-13
        )
        x0 = _denoise(path.x[i], _point(table, i))
        np.testing.assert_allclose(path.x0[i], x0, rtol=0, atol=1e-13)


def test_float32_runs_in_float32_and_stays_close():
    x_lr, noise_init, noise = _draws(5)
    table = make_table(SCHEDULE, steps=5)
    exact = sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])
    single = [a.astype(jnp.float32) for a in (x_lr, noise_init, noise)]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out = sample(_denoise, single[0], table, single[1], lambda i: single[2][i])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=0, atol=5e-6)
    assert {a.dtype for a in cast(table, np.float32)} == {np.dtype(np.float32), np.dtype(bool)}


# --- published forms ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_steps_equal_the_published_update_in_x(order, steps):
    t = make_timesteps(SCHEDULE, steps).astype(int)
    alpha, sigma, eta = SCHEDULE.alpha[t], SCHEDULE.sigma[t], SCHEDULE.eta[t]
    a = alpha * (1 - eta)
    lam = sigma / a
    x_lr, noise_init, noise = _draws(steps)
    x = alpha[0] * x_lr + sigma[0] * noise_init
    seen, preds, slopes = [], [], [0.0]
    for i in range(steps):
        seen.append(x)
        preds.append(_denoise(x, Point(t[i], alpha[i], sigma[i], eta[i])))
        s, u, r = lam[i], lam[i + 1], lam[i + 1] / lam[i]
        c_x = a[i + 1] / a[i] * r**2
        x = c_x * x + (alpha[i + 1] * eta[i + 1] - c_x * alpha[i] * eta[i]) * x_lr
        x += a[i + 1] * (1 - r**2) * preds[i] + sigma[i + 1] * np.sqrt(1 - r**2) * noise[i]
        if i >= 1:
            slopes.append((preds[i] - preds[i - 1]) / (s - lam[i - 1]))
        if order >= 2 and i >= 1:
            x -= a[i + 1] * (u - s) ** 2 / s * slopes[i]
        if order >= 3 and i >= 2:
            bend = 2 * (slopes[i] - slopes[i - 1]) / (s - lam[i - 2])
            x += a[i + 1] * ((s - 3 * u) * (s - u) / 2 - u**2 * np.log(r)) * bend
    table = make_table(SCHEDULE, steps=steps, order=order)
    out, path = sample(_denoise, x_lr, table, noise_init, lambda i: noise[i], keep_path=True)
    # The x-form divides by a ~ 1e-6 at the start and loses digits there; the y-form does not.
    np.testing.assert_allclose(path.x, jnp.stack(seen), rtol=0, atol=1e-9)
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-9)


def test_one_step_is_its_closed_form():
    x_lr, noise_init, noise = _draws(1)
    lam_s, lam_t = SCHEDULE.lam[499], SCHEDULE.lam[0]
    alpha, sigma = SCHEDULE.alpha, SCHEDULE.sigma
    start = Point(499.0, alpha[499], sigma[499], SCHEDULE.eta[499])
    x0 = _denoise(alpha[499] * x_lr + sigma[499] * noise_init, start)
    r = lam_t / lam_s
    y = r**2 * (x_lr + lam_s * noise_init) + (1 - r**2) * x0
    y += lam_t * np.sqrt(1 - r**2) * noise[0]
    expected = alpha[0] * ((1 - SCHEDULE.eta[0]) * y + SCHEDULE.eta[0] * x_lr)
    for order in (1, 2, 3):
        table = make_table(SCHEDULE, steps=1, order=order)
        out = sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_noise_start_of_order_1_is_textbook_ddpm_and_ddim(kind):
    """Written in eps and x as in the papers, over the spaced times, the last step to abar = 1."""
    steps = 7
    t = make_timesteps(SCHEDULE.no_shift(), steps).astype(int)
    abar = np.append(SCHEDULE.alpha[t[:-1]] ** 2, 1.0)
    x_lr, x, noise = _draws(steps)
    table = make_table(SCHEDULE, steps=steps, order=1, kind=kind, start="noise")
    out, path = sample(_denoise, x_lr, table, x, lambda i: noise[i], keep_path=True)
    for i in range(steps):
        np.testing.assert_allclose(path.x[i], x, rtol=0, atol=1e-11)
        x0 = _denoise(x, Point(t[i], np.sqrt(abar[i]), np.sqrt(1 - abar[i]), 0.0))
        eps = (x - np.sqrt(abar[i]) * x0) / np.sqrt(1 - abar[i])
        if kind == "ode":  # DDIM
            x = np.sqrt(abar[i + 1]) * x0 + np.sqrt(1 - abar[i + 1]) * eps
        else:  # DDPM posterior with beta = 1 - abar / abar_next
            beta = 1 - abar[i] / abar[i + 1]
            x = (
                np.sqrt(abar[i + 1]) * beta / (1 - abar[i]) * x0
                + (np.sqrt(1 - beta) * (1 - abar[i + 1]) / (1 - abar[i])) * x
            )
            x += np.sqrt(beta * (1 - abar[i + 1]) / (1 - abar[i])) * noise[i]
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_noise_start_uses_no_lr_latent(kind):
    x_lr, noise_init, noise = _draws(3)
    table = make_table(SCHEDULE, steps=3, kind=kind, start="noise")
    out = sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])
    other = sample(_denoise, x_lr + 1, table, noise_init, lambda i: noise[i])
    np.testing.assert_array_equal(out, other)


# --- the release ----------------------------------------------------------------------------

RUNS = [
    ("samp_o1_s1", 1, 1),
    ("samp_o1_s3", 1, 3),
    ("samp_o1_s5", 1, 5),
    ("samp_o2_s3", 2, 3),
    ("samp_o2_s5", 2, 5),
    ("samp_o3_s3", 3, 3),
    ("samp_o3_s5", 3, 5),
    ("samp_o2_s3_cfg2", 2, 3),
    ("rect_samp_o3_s3_wavelet", 3, 3),
]


# Its samplers take float64 coefficients, not the float32 buffers, so the float64 runs agree to
# rounding; the float32 runs differ by the rounding of both codes.
@pytest.mark.parametrize(
    ("suffix", "dtype", "tol"), [("__f64", np.float64, 1e-12), ("", np.float32, 1e-5)]
)
@pytest.mark.parametrize(("name", "order", "steps"), RUNS)
def test_trajectories_of_the_release(golden, name, order, steps, suffix, dtype, tol):
    """Its noise and its network outputs, replayed, reproduce its latents and predictions."""

    def load(key):  # (n, c, h, w) -> (n, 1, h, w, c)
        return jnp.asarray(np.moveaxis(golden[key], 1, -1)[:, None], dtype)

    prefix = "rect_" if name.startswith("rect") else ""
    x, eps, pred = (load(f"{name}_{what}{suffix}") for what in ("x", "eps", "pred_x0"))
    noise_init, noise = load(prefix + "noise_init")[0], load(prefix + "noise_steps")
    table = make_table(SCHEDULE, steps=steps, order=order)
    # The LR latent is not stored for every run, but it is what the first input was made of.
    x_lr = (x[0] - dtype(table.sigma[0]) * noise_init) / dtype(table.alpha[0])

    def replay(x, point):
        i = jnp.argmin(jnp.abs(jnp.asarray(table.t) - point.t))
        return eps_to_x0(x, eps[i], point.alpha, point.sigma)

    out, path = sample(replay, x_lr, table, noise_init, lambda i: noise[i], keep_path=True)
    np.testing.assert_allclose(path.x, x[:-1], rtol=0, atol=tol)
    np.testing.assert_allclose(path.x0, pred, rtol=0, atol=tol)
    np.testing.assert_allclose(out, x[-1], rtol=0, atol=tol)


# --- a shift that varies over the latent ----------------------------------------------------


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("grid", GRID_NAMES)
def test_constant_eta_array_equals_the_scalar(kind, grid):
    eta = np.broadcast_to(SCHEDULE.eta[:, None, None, None, None], (1000, 1, 4, 3, 1))
    constant = Schedule(SCHEDULE.alpha, SCHEDULE.sigma, eta, SCHEDULE.t1)
    x_lr, noise_init, noise = _draws(5)
    out, expected = (
        sample(
            _denoise,
            x_lr,
            pad_table(make_table(schedule, steps=5, kind=kind, grid=grid), 6),
            noise_init,
            lambda i: noise[i],
        )
        for schedule in (constant, SCHEDULE)
    )
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("final_denoise", [False, True])
def test_varying_eta_equals_one_run_a_pixel(kind, final_denoise):
    varying = _varying()
    x_lr, noise_init, noise = _draws(6)
    opts = {"steps": 6, "kind": kind, "final_denoise": final_denoise}
    out = sample(_denoise, x_lr, make_table(varying, **opts), noise_init, lambda i: noise[i])
    for i in range(SHAPE[2]):
        table = make_table(_pixel(varying, i), **opts)
        column = sample(_denoise, x_lr, table, noise_init, lambda i: noise[i])[:, :, i]
        np.testing.assert_allclose(out[:, :, i], column, rtol=0, atol=1e-11)


# --- orders of convergence ------------------------------------------------------------------

VARIANCE, LAM_END = 0.7, 0.03


def _gaussian_errors(steps: int, order: int, kind: str, lam_start: float) -> tuple[float, float]:
    """Relative errors of mean offset and variance at LAM_END for data N(mu, VARIANCE).

    The exact denoiser of y at noise level lam is mu + a (y - mu) with a = v / (v + lam^2), so a
    sampler is a linear recurrence in (y, y_prev, y_prev2): its mean and covariance propagate
    exactly. The true offset falls as (v + lam^2) in the SDE and as its root in the ODE; the true
    variance is v + lam^2 in both.
    """
    lam = np.geomspace(lam_start, LAM_END, steps + 1)
    c_y, c_x0, c_noise = step_coefficients(lam, order=order, kind=kind)
    a = VARIANCE / (VARIANCE + lam**2)
    total = VARIANCE + lam[[0, -1]] ** 2
    mean, cov = np.eye(3)[0], np.zeros((3, 3))
    cov[0, 0] = total[0]
    for j in range(steps):
        move = np.eye(3, k=-1)
        move[0] = c_x0[j] * a[[j, j - 1, j - 2]]
        move[0, 0] += c_y[j]
        mean = move @ mean
        cov = move @ cov @ move.T
        cov[0, 0] += c_noise[j] ** 2
    fall = (total[1] / total[0]) ** (1.0 if kind == "sde" else 0.5)
    return abs(mean[0] / fall - 1), abs(cov[0, 0] / total[1] - 1)


def _measured_order(order: int, kind: str, lam_start: float, moment: int) -> float:
    coarse, fine = (_gaussian_errors(n, order, kind, lam_start)[moment] for n in (320, 640))
    return np.log2(coarse / fine)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ode_solvers_converge_at_their_order(order):
    """From lam = 1000, where D is constant: warm-up steps of lower order then cost nothing."""
    assert _measured_order(order, "ode", 1e3, moment=0) == pytest.approx(order, abs=0.08)
    assert _measured_order(order, "ode", 1e3, moment=1) == pytest.approx(order, abs=0.08)


def test_warm_up_caps_the_order_at_two_where_predictions_already_move():
    assert _measured_order(3, "ode", 2.0, moment=0) == pytest.approx(2, abs=0.08)


@pytest.mark.parametrize(("order", "weak_order"), [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("lam_start", [1e3, 2.0])
def test_sde_solvers_converge_weakly_at_their_order(order, weak_order, lam_start):
    """The published order 3 is formally of second order (see step_coefficients), yet better."""
    assert _measured_order(order, "sde", lam_start, moment=1) == pytest.approx(weak_order, abs=0.15)
    if order == 3:
        third, second = (_gaussian_errors(40, o, "sde", lam_start)[1] for o in (3, 2))
        assert third < 0.7 * second


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sde_mean_is_exact_for_gaussian_data(order):
    """On the mean path of the SDE the prediction is constant, which every order integrates."""
    assert _gaussian_errors(20, order, "sde", 1e3)[0] < 1e-12


# --- grids ----------------------------------------------------------------------------------


def _distance_to_mixture(steps: int, order: int, grid: str) -> float:
    """Wasserstein-1 distance of a run with the exact denoiser to its data, three Gaussians."""
    rng = np.random.default_rng(0)
    weight, mean, std = np.array([[0.3, 0.4, 0.3], [-1.2, 0.1, 1.1], [0.2, 0.15, 0.25]])
    count = 20_000
    mode = rng.choice(3, count, p=weight)
    data = mean[mode] + std[mode] * rng.standard_normal(count)
    table = make_table(SCHEDULE, steps=steps, order=order, grid=grid)
    y = table.init_noise * rng.standard_normal(count)  # x_lr = 0
    older = [np.zeros(count)] * 2
    for i in range(steps):
        lam = table.sigma[i] / table.m[i]
        total = std**2 + lam**2
        odds = np.log(weight / np.sqrt(total)) - (y[:, None] - mean) ** 2 / (2 * total)
        odds = np.exp(odds - odds.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        x0 = (odds * (y[:, None] * std**2 + mean * lam**2) / total).sum(axis=1)
        y = table.c_y[i] * y + table.c_noise[i] * rng.standard_normal(count)
        y += table.c_x0[i] @ np.stack([x0, *older])
        older = [x0, older[0]]
    return np.abs(np.sort(table.m_out * y) - np.sort(data)).mean()


@pytest.mark.parametrize("order", [2, 3])
def test_jump_grid_is_several_times_closer_at_ten_steps(order):
    uniform, jump = (_distance_to_mixture(10, order, grid) for grid in ("uniform", "jump"))
    assert 3 * jump < uniform


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 600}, "at most 499"),
        ({"steps": 5, "order": 4}, "order is 1, 2 or 3, not 4"),
        ({"steps": 5, "kind": "pf"}, "kind is one of sde, ode, not 'pf'"),
        ({"steps": 5, "grid": "even"}, "grid is one of uniform, log_lambda, jump, not 'even'"),
        ({"steps": 5, "start": "hr"}, "start is one of lr, noise, not 'hr'"),
    ],
)
def test_bad_options_raise_one_line(opts, message):
    with pytest.raises(ValueError, match=message):
        make_table(SCHEDULE, **opts)


def test_bad_levels_and_rows_raise():
    with pytest.raises(ValueError, match="fall strictly"):
        step_coefficients(np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="does not fit into 3 rows"):
        pad_table(make_table(SCHEDULE, steps=5), 3)
