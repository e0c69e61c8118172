"""Forward process, loss and guidance against the release and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dossr_jax.config import ProcessConfig
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import make_schedule

pytestmark = pytest.mark.usefixtures("x64")
SCHEDULE = make_schedule(ProcessConfig())
laws = settings(derandomize=True, deadline=None, max_examples=20)


def _nhwc(array: np.ndarray, dtype=np.float64) -> jax.Array:
    return jnp.asarray(np.moveaxis(array, 1, -1), dtype)


def _levels(t: np.ndarray, dtype=np.float64) -> list[jax.Array]:
    tables = (SCHEDULE.alpha, SCHEDULE.sigma, SCHEDULE.eta)
    return [process.take_levels(jnp.asarray(table, dtype), jnp.asarray(t)) for table in tables]


# The release keeps its buffers in float32 even where the model runs in float64, and 1 / alpha is
# 14.6 at t = 999: hence 1e-6 and not 1e-9 for the float64 twins.
@pytest.mark.parametrize(
    ("suffix", "dtype", "tol"), [("", np.float32, 2e-6), ("__f64", np.float64, 1e-6)]
)
def test_training_pass_equals_the_release(golden, suffix, dtype, tol):
    x0, x_lr, eps = (_nhwc(golden[f"train_{n}"], dtype) for n in ("x", "x_hat", "noise"))
    alpha, sigma, eta = _levels(golden["eps_t"], dtype)
    x = process.q_sample(x0, x_lr, alpha, sigma, eta, eps)
    assert x.dtype == dtype
    np.testing.assert_allclose(x, _nhwc(golden["train_x_noisy" + suffix]), rtol=0, atol=4 * tol)

    pred = _nhwc(golden["train_pred_x0" + suffix], dtype)
    eps_pred = process.x0_to_eps(x, pred, alpha, sigma)
    prediction = process.eps_to_x0(x, eps_pred, alpha, sigma)
    loss = process.training_loss(x0, prediction)
    rows = process.training_loss(x0, prediction, per_sample=True)
    assert loss.dtype == dtype and loss.shape == () and rows.shape == (4,)
    np.testing.assert_allclose(loss, golden["train_loss" + suffix], rtol=tol)
    np.testing.assert_allclose(rows, golden["train_loss_per_sample" + suffix], rtol=tol)


@laws
@given(st.integers(0, 999), st.integers(0, 2**31))
def test_eps_and_x0_invert_each_other(t, seed):
    rng = np.random.default_rng(seed)
    x, eps = jnp.asarray(rng.standard_normal((2, 1, 2, 2, 1)))
    alpha, sigma, _ = _levels(np.array([t]))
    x0 = process.eps_to_x0(x, eps, alpha, sigma)
    np.testing.assert_allclose(process.x0_to_eps(x, x0, alpha, sigma), eps, atol=1e-12)


def test_ends_of_the_forward_process():
    rng = np.random.default_rng(0)
    x0, x_lr, eps = jnp.asarray(rng.standard_normal((3, 1, 4, 4, 2)))
    first = process.q_sample(x0, x_lr, *_levels(np.array([0])), eps)
    np.testing.assert_allclose(first, x0, atol=0.2)
    alpha, sigma, eta = _levels(np.array([700]))
    np.testing.assert_allclose(
        process.q_sample(x0, x_lr, alpha, sigma, eta, eps), alpha * x_lr + sigma * eps
    )


def test_levels_broadcast_scalars_and_maps():
    t = jnp.array([3, 998])
    assert process.take_levels(jnp.asarray(SCHEDULE.eta), t).shape == (2, 1, 1, 1)
    shared = jnp.asarray(SCHEDULE.eta.reshape(-1, 1, 1, 1, 1) * np.ones((1, 2, 3, 1)))
    own = jnp.concatenate([shared, 0.5 * shared], axis=1)
    out = process.take_levels(shared, t)
    assert out.shape == (2, 2, 3, 1)
    np.testing.assert_array_equal(out[:, 1, 2, 0], SCHEDULE.eta[[3, 998]])
    out = process.take_levels(own, t)
    np.testing.assert_array_equal(out[:, 0, 0, 0], SCHEDULE.eta[[3, 998]] * [1, 0.5])


def test_perfect_prediction_has_no_loss():
    rng = np.random.default_rng(1)
    x0, eps = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 2)))
    alpha, sigma, _ = _levels(np.array([0, 10, 400]))
    # Without a shift the noise that was added predicts x0 exactly.
    x = process.q_sample(x0, x0, alpha, sigma, jnp.zeros_like(alpha), eps)
    assert process.training_loss(x0, process.eps_to_x0(x, eps, alpha, sigma)) < 1e-13


@laws
@given(st.floats(-2, 8))
def test_guidance_is_linear_in_its_scale(scale):
    cond, uncond = jnp.asarray(np.random.default_rng(2).standard_normal((2, 1, 2, 2, 1)))
    out = jax.jit(process.guide)(cond, uncond, scale)
    np.testing.assert_allclose(out, (1 - scale) * uncond + scale * cond, atol=1e-12)


def test_guidance_and_fidelity_ends():
    a, b = jnp.asarray(np.random.default_rng(3).standard_normal((2, 1, 2, 2, 1)))
    np.testing.assert_allclose(process.guide(a, b, 1.0), a, rtol=1e-14)
    np.testing.assert_array_equal(process.guide(a, b, 0.0), b)
    np.testing.assert_array_equal(process.toward_lr(a, b, 0.0), a)
    np.testing.assert_array_equal(process.toward_lr(a, b, 1.0), b)
