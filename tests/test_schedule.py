"""Laws of the schedule, and its arrays against those of the release."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dossr_jax.config import ProcessConfig
from dossr_jax.config.sampler import Eta, TimeGrid
from dossr_jax.diffusion.schedule import (
    GRID_DEVIATIONS,
    Levels,
    Schedule,
    asinh_coordinate,
    make_eta,
    make_schedule,
    make_timesteps,
    release_buffers,
)

SCHEDULE = make_schedule(ProcessConfig())
laws = settings(derandomize=True, deadline=None, max_examples=40)


def _varying(schedule: Schedule) -> Schedule:
    """The same process with a shift that grows at three speeds along the width."""
    power = np.array([0.5, 1.0, 2.0]).reshape(1, 1, 1, 3, 1)
    eta = schedule.eta.reshape(-1, 1, 1, 1, 1) ** power
    return Schedule(schedule.alpha, schedule.sigma, eta, schedule.t1)


def test_release_buffers_are_bit_exact(golden_dir):
    from safetensors import safe_open

    buffers = release_buffers(ProcessConfig())
    with safe_open(golden_dir / "weights.safetensors", "numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys() if "." not in name}
    assert set(buffers) == set(stored) and len(buffers) == 15
    for name, values in buffers.items():
        assert values.dtype == stored[name].dtype == np.float32, name
        np.testing.assert_array_equal(values, stored[name], err_msg=name)


@pytest.mark.parametrize("name", get_args(Eta))
def test_eta_equals_the_release(golden, name):
    eta, t1 = make_eta(name, 1000)
    assert t1 == golden[f"eta_{name}_t1"]
    # One unit in the last place: cosines of two libraries.
    np.testing.assert_allclose(eta, golden[f"eta_{name}"], rtol=0, atol=2.3e-16)
    assert (np.diff(eta[:t1]) > 0).all() and (eta[t1:] == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 50])
def test_uniform_grid_equals_the_release(golden, steps):
    def stored(name):
        return golden[f"sched{steps}_{name}"][::-1]  # there in rising order

    t = make_timesteps(SCHEDULE, steps)
    np.testing.assert_array_equal(t, stored("timesteps"))
    levels = SCHEDULE.at(t)
    close = {"rtol": 1e-14, "atol": 0}
    np.testing.assert_allclose(levels.alpha**2, stored("alphas_cumprod"), **close)
    np.testing.assert_allclose(levels.sigma, stored("sigmas"), **close)
    np.testing.assert_allclose(levels.eta, stored("etas"), **close)
    # 1 - eta keeps 10 digits at t1 - 1, where eta itself is one ulp from the release's.
    np.testing.assert_allclose(levels.m, stored("alphas_multi_one_minus_etas"), rtol=1e-9)
    np.testing.assert_allclose(levels.lam, stored("lambdas"), rtol=1e-9)


def test_halves_round_to_even():
    schedule = make_schedule(ProcessConfig(eta="trunc_13"))
    t = make_timesteps(schedule, 8)  # 41.5 apart
    np.testing.assert_array_equal(t, [332, 290, 249, 208, 166, 124, 83, 42, 0])


def test_integers_are_the_table():
    t = np.arange(1000.0)
    levels = SCHEDULE.at(t)
    for name in Levels._fields:
        np.testing.assert_array_equal(getattr(levels, name), getattr(SCHEDULE, name))


@laws
@given(st.floats(0, 999))
def test_variance_is_one_between_integers(t):
    alpha, sigma, eta = SCHEDULE.at(np.array([t]))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    assert 0 <= eta[0] <= 1


@pytest.mark.parametrize("name", get_args(Eta))
def test_noise_level_rises(name):
    schedule = make_schedule(ProcessConfig(eta=name))
    assert (np.diff(schedule.lam) > 0).all()
    t = np.linspace(0, schedule.t1 - 1, 4001)
    assert (np.diff(schedule.at(t).lam) > 0).all()


@laws
@given(st.floats(0, 499), st.booleans())
def test_time_of_inverts_at(t, shifted):
    schedule = SCHEDULE if shifted else SCHEDULE.no_shift()
    t = np.array([t if shifted else 2 * t])
    np.testing.assert_allclose(schedule.time_of(schedule.at(t).lam), t, atol=1e-7)


def test_levels_of_x_and_y_agree():
    levels = SCHEDULE.at(np.linspace(0, 499, 77))
    np.testing.assert_allclose(levels.m + levels.shift, levels.alpha, rtol=1e-15)
    np.testing.assert_allclose(levels.m * levels.lam, levels.sigma, rtol=1e-14)


def test_no_shift_is_plain_diffusion():
    plain = SCHEDULE.no_shift()
    assert plain.t1 == 1000 and not plain.eta.any()
    np.testing.assert_array_equal(plain.lam, SCHEDULE.sigma / SCHEDULE.alpha)


def test_varying_eta_equals_one_schedule_a_pixel():
    varying = _varying(SCHEDULE)
    t = np.array([499, 333.3, 7.5, 0])
    levels = varying.at(t)
    assert levels.lam.shape == (4, 1, 1, 3, 1)
    for i in range(3):
        pixel = Schedule(SCHEDULE.alpha, SCHEDULE.sigma, varying.eta[:, 0, 0, i, 0], SCHEDULE.t1)
        np.testing.assert_allclose(levels.lam[:, 0, 0, i, 0], pixel.at(t).lam, rtol=1e-15)


@laws
@given(st.integers(1, 50), st.sampled_from(get_args(TimeGrid)), st.booleans(), st.booleans())
def test_grids_fall_from_first_to_last_time(steps, grid, shifted, varying):
    schedule = SCHEDULE if shifted else SCHEDULE.no_shift()
    schedule = _varying(schedule) if varying and shifted else schedule
    t = make_timesteps(schedule, steps, grid)
    evaluated_at_0 = grid == "spaced"
    assert t.shape == (steps + (not evaluated_at_0),) and t.dtype == np.float64
    assert t[-1] == 0 and (np.diff(t) < 0).all()
    assert t[0] == schedule.t1 - 1 or (evaluated_at_0 and steps == 1)


def test_the_asinh_grid_is_uniform_in_its_coordinate():
    lam = SCHEDULE.at(make_timesteps(SCHEDULE, 10, "asinh")).lam
    np.testing.assert_allclose(np.diff(asinh_coordinate(lam, GRID_DEVIATIONS), 2), 0, atol=1e-9)


def test_asinh_coordinate_is_a_mean_over_deviations_and_finite_at_both_ends():
    s = np.linspace(*GRID_DEVIATIONS, 20_001)
    for lam in (0.03, 1.0, 50.0):
        mean = np.trapezoid(1 / np.sqrt(s**2 + lam**2), s)
        coordinate = asinh_coordinate(np.array([lam]), GRID_DEVIATIONS)
        assert coordinate[0] == pytest.approx(mean, rel=1e-5)
    far, near = asinh_coordinate(np.array([1e12, 1e-12]), GRID_DEVIATIONS)
    assert far == pytest.approx(0, abs=1e-11)
    assert near == pytest.approx(np.log(GRID_DEVIATIONS[1] / GRID_DEVIATIONS[0]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_timesteps(SCHEDULE, 500), "steps 500: at most 499"),
        (lambda: make_eta("cosine", 1000), "eta is one of trunc_12"),
        (lambda: SCHEDULE.at(np.array([1000.0])), r"within \[0, 999\]"),
        (lambda: Schedule(*SCHEDULE.at(np.arange(9.0))[:2], np.zeros((9, 4)), 5), "eta is"),
        (lambda: Schedule(SCHEDULE.alpha, SCHEDULE.sigma, SCHEDULE.eta, 501), "t1 = 501"),
    ],
)
def test_bad_values_raise_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
