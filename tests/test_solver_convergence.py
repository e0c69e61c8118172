"""How fast the solvers approach the truth, where the exact denoiser is known."""

import numpy as np
import pytest
from helpers.solvers import SCHEDULE

from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.solver import make_table, step_coefficients

# --- orders of convergence ------------------------------------------------------------------

VARIANCE, LAM_END = 0.7, 0.03


def _gaussian_errors(steps: int, order: int, solver: str, lam_start: float) -> tuple[float, float]:
    """Relative errors of mean offset and variance at LAM_END for data N(mu, VARIANCE).

    The exact denoiser of y at noise level lam is mu + a (y - mu) with a = v / (v + lam^2), so a
    sampler is a linear recurrence in (y, y_prev, y_prev2): its mean and covariance propagate
    exactly. The true offset falls as (v + lam^2) in the SDE and as its root in the ODE; the true
    variance is v + lam^2 in both.
    """
    lam = np.geomspace(lam_start, LAM_END, steps + 1)
    c_y, c_x0, c_noise = step_coefficients(lam, order=order, solver=solver)
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
    fall = (total[1] / total[0]) ** (1.0 if solver == "sde" else 0.5)
    return abs(mean[0] / fall - 1), abs(cov[0, 0] / total[1] - 1)


def _measured_order(order: int, solver: str, lam_start: float, moment: int) -> float:
    coarse, fine = (_gaussian_errors(n, order, solver, lam_start)[moment] for n in (320, 640))
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


def _distance_to_mixture(steps: int, order: int, grid: str, solver: str = "sde") -> float:
    """Wasserstein-1 distance of a run with the exact denoiser to its data, three Gaussians."""
    rng = np.random.default_rng(0)
    weight, mean, std = np.array([[0.3, 0.4, 0.3], [-1.2, 0.1, 1.1], [0.2, 0.15, 0.25]])
    count = 20_000
    mode = rng.choice(3, count, p=weight)
    data = mean[mode] + std[mode] * rng.standard_normal(count)
    table = make_table(SCHEDULE, SamplerConfig(steps=steps, order=order, grid=grid, solver=solver))
    y = table.ends.init_noise * rng.standard_normal(count)  # x_lr = 0
    older = [np.zeros(count)] * 2
    for i in range(steps):
        lam = table.rows.sigma[i] / table.rows.m[i]
        total = std**2 + lam**2
        odds = np.log(weight / np.sqrt(total)) - (y[:, None] - mean) ** 2 / (2 * total)
        odds = np.exp(odds - odds.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        x0 = (odds * (y[:, None] * std**2 + mean * lam**2) / total).sum(axis=1)
        y = table.rows.c_y[i] * y + table.rows.c_noise[i] * rng.standard_normal(count)
        y += table.rows.c_x0[i] @ np.stack([x0, *older])
        older = [x0, older[0]]
    return np.abs(np.sort(table.ends.m_out * y) - np.sort(data)).mean()


@pytest.mark.parametrize(("steps", "share"), [(3, 0.5), (4, 0.5), (5, 0.5), (10, 0.25)])
def test_asinh_is_a_fraction_of_the_distance_of_the_published_sampler(steps, share):
    """Order 2 against order 3; 20 000 samples, whose own distance from the truth is 0.005."""
    published = _distance_to_mixture(steps, 3, "uniform")
    assert _distance_to_mixture(steps, 2, "asinh", solver="asinh") < share * published


@pytest.mark.parametrize("order", [1, 2])
def test_asinh_converges_at_its_order(order):
    """From lam = 1000; where the first predictions move already, its warm-up is of order 2 too."""
    assert _measured_order(order, "asinh", 1e3, moment=1) == pytest.approx(order, abs=0.15)
