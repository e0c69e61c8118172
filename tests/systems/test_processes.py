"""Laws of all systems' solver tables: marginals are kept, one step is the published formula."""

import dataclasses

import numpy as np
import pytest

from dossr_jax.config import ConfigError, DoSSRConfig, ProcessConfig
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.systems import system_of
from dossr_jax.systems.diffbir.config import DiffBIRConfig
from dossr_jax.systems.resshift.config import ResShiftConfig, ResShiftProcess
from dossr_jax.systems.resshift.process import kept_steps, make_levels

ZERO_SNR = ProcessConfig(prediction="v", zero_snr=True)
LONG = ResShiftProcess(steps=15, min_noise=0.04)
CASES = {
    "DoSSR": (DoSSRConfig(), {"final_denoise": True}),
    "DiffBIR": (DiffBIRConfig(), {"steps": 7}),
    "DiffBIR, v": (DiffBIRConfig(process=ZERO_SNR), {"steps": 7}),
    "DiffBIR, v, order 3": (DiffBIRConfig(process=ZERO_SNR), {"steps": 7, "order": 3}),
    "DiffBIR, ODE of order 2": (DiffBIRConfig(), {"steps": 7, "order": 2, "solver": "ode"}),
    "ResShift": (ResShiftConfig(), {}),
    "ResShift, 15 steps": (ResShiftConfig(process=LONG), {"steps": 15}),
    "ResShift, 5 of 15": (ResShiftConfig(process=LONG), {"steps": 5}),
    "ResShift, SDE of order 3": (ResShiftConfig(), {"solver": "sde", "order": 3}),
    "ResShift, ODE of order 2": (ResShiftConfig(), {"solver": "ode", "order": 2}),
    "ResShift, asinh": (ResShiftConfig(), {"solver": "asinh", "order": 2}),
}


def table_of(case: str) -> SolverTable:
    config, changes = CASES[case]
    system = system_of(config)
    assert system.table is not None
    return system.table(config, dataclasses.replace(config.sampler, **changes))


@pytest.mark.parametrize("case", CASES)
def test_every_row_preserves_the_marginal(case):
    """With the exact prediction D = x0, a row maps y = x0 + lam eps to x0 + lam_next eps'."""
    rows, ends = table_of(case)
    with np.errstate(divide="ignore"):
        lam = np.where(rows.alpha > 0, rows.sigma / rows.m, np.inf)
    lam_next = np.append(lam[1:], 0.0)
    np.testing.assert_allclose(rows.c_y + rows.c_x0.sum(axis=1), 1, atol=1e-12)
    kept = np.where(rows.c_y > 0, rows.c_y, 0) * np.where(np.isinf(lam), 0, lam)
    np.testing.assert_allclose(kept**2 + rows.c_noise**2, lam_next**2, rtol=1e-11, atol=1e-15)
    assert (rows.c_y[np.isinf(lam)] == 0).all()  # nothing of pure noise is kept
    assert ends.m_out == 1 and ends.shift_out == 0  # it ends with x0 itself
    assert rows.c_x0[-1].tolist() == [1, 0, 0] and rows.c_noise[-1] == 0


def step_in_x(rows, i: int, x, x_lr, x0, z):
    """A row of order 1 as it maps the network's input to the next one."""
    y = (x - rows.shift[i] * x_lr) / rows.m[i]
    y = rows.c_y[i] * y + rows.c_x0[i, 0] * x0 + rows.c_noise[i] * z
    return rows.m[i + 1] * y + rows.shift[i + 1] * x_lr


@pytest.fixture
def draws() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 5))  # x, x_lr, x0, z


@pytest.mark.parametrize("case", ["ResShift", "ResShift, 15 steps", "ResShift, 5 of 15"])
def test_a_step_of_resshift_is_its_posterior(case, draws):
    config, changes = CASES[case]
    rows = table_of(case).rows
    eta = make_levels(config.process).eta[rows.t.astype(int)]
    x, x_lr, x0, z = draws
    assert len(eta) == changes.get("steps", 4)
    for i in range(len(eta) - 1):
        now, then = eta[i], eta[i + 1]
        expected = then / now * x + (now - then) / now * x0
        expected = expected + config.process.kappa * np.sqrt(then * (now - then) / now) * z
        np.testing.assert_allclose(
            step_in_x(rows, i, x, x_lr, x0, z), expected, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("case", ["DiffBIR", "DiffBIR, v"])
def test_a_step_of_diffbir_is_ddpms_posterior_on_respaced_times(case, draws):
    config, _ = CASES[case]
    rows = table_of(case).rows
    abar = make_schedule(config.process).alpha[rows.t.astype(int)] ** 2
    assert rows.t[0] == 999 and rows.t[-1] == 0
    x, x_lr, x0, z = draws
    for i in range(len(abar) - 1):
        beta = 1 - abar[i] / abar[i + 1]
        mean = np.sqrt(abar[i + 1]) * beta * x0 + np.sqrt(1 - beta) * (1 - abar[i + 1]) * x
        deviation = np.sqrt(beta * (1 - abar[i + 1]) / (1 - abar[i]))
        expected = mean / (1 - abar[i]) + deviation * z
        np.testing.assert_allclose(step_in_x(rows, i, x, x_lr, x0, z), expected, rtol=1e-11)


def test_zero_snr_moves_and_scales_alpha_alone():
    plain, moved = (make_schedule(p) for p in (ProcessConfig(), ZERO_SNR))
    assert moved.alpha[-1] == 0 and moved.alpha[0] == pytest.approx(plain.alpha[0], abs=1e-15)
    slope = np.diff(moved.alpha) / np.diff(plain.alpha)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-9)
    np.testing.assert_allclose(moved.alpha**2 + moved.sigma**2, 1, rtol=1e-12)
    with pytest.raises(ConfigError, match="zero_snr true: .* choose prediction v"):
        ProcessConfig(zero_snr=True)


def test_which_steps_a_shorter_chain_keeps():
    assert kept_steps(LONG, 5).tolist() == [12, 9, 6, 3, 0]
    assert kept_steps(LONG, 15).tolist() == list(range(15))[::-1]
    sinsr = dataclasses.replace(LONG, spacing="trailing")
    assert kept_steps(sinsr, 1).tolist() == [14]
    assert kept_steps(sinsr, 5).tolist() == [14, 11, 8, 5, 2]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (ResShiftConfig(), {"order": 2}, "order 2: solver chain is of order 1"),
        (ResShiftConfig(), {"steps": 5}, "steps 5: at most 4"),
        (DoSSRConfig(), {"solver": "chain"}, "solver chain: is ResShift's"),
        (DiffBIRConfig(), {"solver": "chain"}, "solver chain: is ResShift's"),
    ],
)
def test_what_a_process_cannot_do_is_said(config, changes, message):
    table = system_of(config).table
    assert table is not None
    with pytest.raises(ConfigError, match=message):
        table(config, dataclasses.replace(config.sampler, **changes))
