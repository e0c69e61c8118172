"""The solvers against the updates that papers print, and against trajectories of the release."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.solvers import SCHEDULE, denoise, draws

from dossr_jax.config import SamplerConfig
from dossr_jax.config.sampler import Solver
from dossr_jax.diffusion.process import eps_to_x0
from dossr_jax.diffusion.schedule import make_timesteps
from dossr_jax.diffusion.solver import Point, make_table, sample, sample_path

pytestmark = pytest.mark.usefixtures("x64")


# --- published forms ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_steps_equal_the_published_update_in_x(order, steps):
    t = make_timesteps(SCHEDULE, steps).astype(int)
    alpha, sigma, eta = SCHEDULE.alpha[t], SCHEDULE.sigma[t], SCHEDULE.eta[t]
    a = alpha * (1 - eta)
    lam = sigma / a
    x_lr, noise_init, noise = draws(steps)
    x = alpha[0] * x_lr + sigma[0] * noise_init
    seen, preds, slopes = [], [], [0.0]
    for i in range(steps):
        seen.append(x)
        preds.append(denoise(x, Point(t[i], alpha[i], sigma[i], eta[i])))
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
    table = make_table(SCHEDULE, SamplerConfig(steps=steps, order=order))
    out, path = sample_path(denoise, x_lr, table, noise_init, lambda i: noise[i])
    # The x-form divides by a ~ 1e-6 at the start and loses digits there; the y-form does not.
    np.testing.assert_allclose(path.x, jnp.stack(seen), rtol=0, atol=1e-9)
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-9)


def test_one_step_is_its_closed_form():
    x_lr, noise_init, noise = draws(1)
    lam_s, lam_t = SCHEDULE.lam[499], SCHEDULE.lam[0]
    alpha, sigma = SCHEDULE.alpha, SCHEDULE.sigma
    start = Point(499.0, alpha[499], sigma[499], SCHEDULE.eta[499])
    x0 = denoise(alpha[499] * x_lr + sigma[499] * noise_init, start)
    r = lam_t / lam_s
    y = r**2 * (x_lr + lam_s * noise_init) + (1 - r**2) * x0
    y += lam_t * np.sqrt(1 - r**2) * noise[0]
    expected = alpha[0] * ((1 - SCHEDULE.eta[0]) * y + SCHEDULE.eta[0] * x_lr)
    for order in (1, 2, 3):
        table = make_table(SCHEDULE, SamplerConfig(steps=1, order=order))
        out = sample(denoise, x_lr, table, noise_init, lambda i: noise[i])
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_noise_start_of_order_1_is_textbook_ddpm_and_ddim(solver):
    """Written in eps and x as in the papers, over the spaced times, the last step to abar = 1."""
    steps = 7
    t = make_timesteps(SCHEDULE.no_shift(), steps).astype(int)
    abar = np.append(SCHEDULE.alpha[t[:-1]] ** 2, 1.0)
    x_lr, x, noise = draws(steps)
    table = make_table(SCHEDULE, SamplerConfig(steps=steps, order=1, solver=solver, start="noise"))
    out, path = sample_path(denoise, x_lr, table, x, lambda i: noise[i])
    for i in range(steps):
        np.testing.assert_allclose(path.x[i], x, rtol=0, atol=1e-11)
        x0 = denoise(x, Point(t[i], np.sqrt(abar[i]), np.sqrt(1 - abar[i]), 0.0))
        eps = (x - np.sqrt(abar[i]) * x0) / np.sqrt(1 - abar[i])
        if solver == "ode":  # DDIM
            x = np.sqrt(abar[i + 1]) * x0 + np.sqrt(1 - abar[i + 1]) * eps
        else:  # DDPM posterior with beta = 1 - abar / abar_next
            beta = 1 - abar[i] / abar[i + 1]
            x = (
                np.sqrt(abar[i + 1]) * beta / (1 - abar[i]) * x0
                + (np.sqrt(1 - beta) * (1 - abar[i + 1]) / (1 - abar[i])) * x
            )
            x += np.sqrt(beta * (1 - abar[i + 1]) / (1 - abar[i])) * noise[i]
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", get_args(Solver))
def test_noise_start_uses_no_lr_latent(solver):
    x_lr, noise_init, noise = draws(3)
    table = make_table(SCHEDULE, SamplerConfig(steps=3, solver=solver, start="noise"))
    out = sample(denoise, x_lr, table, noise_init, lambda i: noise[i])
    other = sample(denoise, x_lr + 1, table, noise_init, lambda i: noise[i])
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
    table = make_table(SCHEDULE, SamplerConfig(steps=steps, order=order))
    # The LR latent is not stored for every run, but it is what the first input was made of.
    x_lr = (x[0] - dtype(table.rows.sigma[0]) * noise_init) / dtype(table.rows.alpha[0])

    def replay(x, point):
        i = jnp.argmin(jnp.abs(jnp.asarray(table.rows.t) - point.t))
        return eps_to_x0(x, eps[i], point.alpha, point.sigma)

    out, path = sample_path(replay, x_lr, table, noise_init, lambda i: noise[i])
    np.testing.assert_allclose(path.x, x[:-1], rtol=0, atol=tol)
    np.testing.assert_allclose(path.x0, pred, rtol=0, atol=tol)
    np.testing.assert_allclose(out, x[-1], rtol=0, atol=tol)
