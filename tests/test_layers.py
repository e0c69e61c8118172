"""Layers that compute in another order than their definition says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import TINY, tiny_model

from dossr_jax.models import convolution, rrdbnet
from dossr_jax.models.layers import Factory


def draw(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(dtype):
    return Factory(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("form", [convolution._convolve_phases, convolution._convolve_among_zeros])
# Few pixels, which are enlarged first, and enough for kernels of their own.
@pytest.mark.parametrize("sides", [(1, 2), (5, 7)])
def test_enlarging_convolution_is_one_after_nearest_neighbours(monkeypatch, form, sides):
    with jax.enable_x64():
        conv = make("float64").up_conv(3, 4)
        conv.bias[...] = draw(4, dtype="float64")
        monkeypatch.setattr(convolution, "_convolve_phases", form)  # what a CPU runs
        x = draw(2, *sides, 3, dtype="float64")
        enlarged = x.repeat(2, axis=1).repeat(2, axis=2)
        plain = nnx.Conv.__call__(conv, enlarged)
        np.testing.assert_allclose(conv(x), plain, rtol=1e-12, atol=1e-13)


def test_norm_in_16_bits_is_as_exact_as_its_input():
    """Also of features far from zero, whose squares are far larger than their variance."""
    x = (30 + draw(2, 6, 5, 8)).astype(jnp.bfloat16)
    shift = draw(1, 8, seed=1).astype(jnp.bfloat16)
    norm = make("bfloat16").group_norm(8, 4, 1e-5)
    exact = np.asarray(x, np.float64) + np.asarray(shift, np.float64)[:, None, None]
    grouped = exact.reshape(2, 30, 4, 2)
    mean, deviation = (f(grouped, (1, 3), keepdims=True) for f in (np.mean, np.std))
    expected = ((grouped - mean) / np.sqrt(deviation**2 + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(np.asarray(norm(x, shift), np.float64), expected, atol=2**-7)


def test_norm_in_16_bits_of_a_flat_image_is_its_bias():
    norm = make("bfloat16").group_norm(8, 4, 1e-6)
    norm.bias[...] = jnp.full(8, 0.5, jnp.bfloat16)
    flat = jnp.full((1, 16, 16, 8), 100, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(norm(flat), np.float32), 0.5, atol=0.01)


def test_norm_in_32_bits_adds_its_shift():
    norm, x, shift = make("float32").group_norm(8, 4, 1e-5), draw(2, 3, 3, 8), draw(2, 8, seed=1)
    np.testing.assert_allclose(norm(x, shift), norm(x + shift[:, None, None]), atol=1e-6)


@pytest.mark.parametrize("room", [1, 2, 9])
def test_room_for_features_to_come_changes_nothing(room):
    kernels = [draw(3, 3, 4 + 2 * i, 2 if i < 4 else 4, seed=i) for i in range(5)]
    biases = [draw(k.shape[-1], seed=9) for k in kernels]
    x = draw(1, 6, 5, 4)
    plain, roomy = (rrdbnet._grow(x, kernels, biases, room=r) for r in (0, room))
    np.testing.assert_allclose(roomy, plain, rtol=1e-5, atol=1e-5)


def test_a_solvers_step_is_a_prediction_at_its_time():
    """What is computed once for all steps is what each would compute."""
    model, times = tiny_model(), jnp.array([400.0, 150.5, 3.0])
    x, hint = draw(2, 8, 8, 4), draw(2, 8, 8, 4, seed=1)
    context = draw(1, TINY.context_length, TINY.unet.context_dim, seed=2)

    @nnx.jit
    def both(model, i):
        repeated = jnp.repeat(context, 2, 0)
        step = model.for_steps(times, context)(x, i[None], hint, 0.7)
        alone = model.predict_noise(x, jnp.full(2, times[i]), repeated, hint, strength=0.7)
        return step, alone

    for i in range(3):
        np.testing.assert_allclose(*both(model, jnp.array(i)), rtol=1e-5, atol=1e-5)
