"""Laws and reference values of dossr_jax.image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dossr_jax import image


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def full_size(x):
    return jnp.tile(jnp.asarray([x.shape[1:3]], jnp.int32), (x.shape[0], 1))


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("prefix", ["", "rect_"])
@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_matches_release_in_float32(golden, kind, prefix):
    decoded, pre = (nhwc(golden[f"{prefix}stage_{name}"]) for name in ("decoded", "pre"))
    fixed = jax.jit(image.color_fix, static_argnums=0)(kind, (decoded + 1) / 2, pre, full_size(pre))
    want = nhwc(golden[f"{prefix}stage_{kind}"])
    # 2e-6: the sums of 1.6e4 pixels that either side rounds in its own order.
    assert jnp.abs(fixed - want).max() <= 2e-6 * jnp.abs(want).max()


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_matches_release_in_float64(golden, kind):
    with jax.enable_x64(True):
        decoded = nhwc(golden["stage_decoded__f64"])
        pre = jnp.clip(nhwc(golden["stage_pre_raw__f64"]), 0, 1)
        fixed = jax.jit(image.color_fix, static_argnums=0)(
            kind, (decoded + 1) / 2, pre, full_size(pre)
        )
        assert fixed.dtype == jnp.float64
        want = nhwc(golden[f"stage_{kind}__f64"])
        assert jnp.abs(fixed - want).max() <= 1e-12 * jnp.abs(want).max()


@pytest.mark.parametrize("kind", ["wavelet", "adain", "none"])
def test_color_fix_of_part_of_a_canvas_is_that_of_the_crop(kind):
    sizes = [(1, 1), (5, 33), (40, 7), (40, 48)]
    x, ref = uniform(4, 40, 48, 3), uniform(4, 40, 48, 3, seed=1)
    for i, (h, w) in enumerate(sizes):
        x[i, h:], x[i, :, w:], ref[i, h:], ref[i, :, w:] = (np.nan,) * 4
    fix = jax.jit(image.color_fix, static_argnums=0)
    with jax.numpy_dtype_promotion("strict"):
        size = jnp.asarray(sizes, jnp.int32)
        whole = fix(kind, jnp.asarray(x), jnp.asarray(ref), size)
        for i, (h, w) in enumerate(sizes):
            crop, crop_ref = (jnp.asarray(a[i : i + 1, :h, :w]) for a in (x, ref))
            alone = fix(kind, crop, crop_ref, size[i : i + 1])
            np.testing.assert_allclose(whole[i, :h, :w], alone[0], rtol=0, atol=2e-6)


def test_wavelet_fix_takes_the_mean_of_the_reference_and_keeps_detail():
    x = jnp.asarray(uniform(1, 32, 32, 3))
    size = full_size(x)
    shifted = jax.jit(image.wavelet_fix)(x + 0.25, x, size)
    np.testing.assert_allclose(shifted, x, atol=1e-6)


def test_adain_fix_takes_mean_and_deviation_of_the_reference():
    x, ref = jnp.asarray(uniform(1, 16, 16, 3)), jnp.asarray(0.3 * uniform(1, 16, 16, 3, seed=1))
    fixed = image.adain_fix(x, ref, full_size(x))
    np.testing.assert_allclose(fixed.mean((1, 2)), ref.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(fixed.std((1, 2)), ref.std((1, 2)), rtol=1e-3)


def test_statistics_stay_exact_on_large_images():
    x = uniform(1, 1536, 1536, 3)
    fix = jax.jit(image.adain_fix)
    np.testing.assert_allclose(fix(jnp.asarray(x), jnp.asarray(x), full_size(x)), x, atol=2e-6)
    centred = np.asarray(fix(jnp.asarray(x), jnp.zeros_like(x), full_size(x)), np.float64)
    assert abs(centred.mean()) < 1e-8


def test_pixels_to_levels_rounds_and_clips():
    x = jnp.asarray([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 2.0])
    assert image.pixels_to_levels(x).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert image.pixels_to_levels(x, truncate=True).tolist() == [0, 0, 0, 0, 254, 255, 255]


def test_truncation_reproduces_the_release(golden):
    ours = image.pixels_to_levels(nhwc(golden["samp_o3_s3_img"])[0], truncate=True)
    np.testing.assert_array_equal(ours, golden["process_s3_none_u8"])


@given(st.integers(1, 9), st.integers(1, 60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_reflect_indices_equal_numpy(size, length):
    index = image.reflect_indices(size, max(size, length))
    want = np.pad(np.arange(size), (0, max(size, length) - size), mode="reflect")
    np.testing.assert_array_equal(index, want)


def test_pad_to_reflects_any_size():
    one = np.full((1, 1, 3), 7, np.uint8)
    np.testing.assert_array_equal(image.pad_to(one, 5, 8), np.full((5, 8, 3), 7))
    x = uniform(3, 2, 3)
    padded = image.pad_to(x, 16, 16)
    assert padded.dtype == x.dtype
    np.testing.assert_array_equal(padded[:3, :2], x)
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 13), (0, 14), (0, 0)), mode="reflect"))
    with pytest.raises(ValueError, match="cannot pad 3x2"):
        image.pad_to(x, 2, 2)


def test_noise_depends_on_key_and_position_only():
    keys = jax.random.split(jax.random.key(3), 2)
    large = jax.jit(lambda keys: image.batch_position_noise(keys, 24, 40, 4))(keys)
    for canvas in ((1, 1), (9, 40)):
        small = jax.jit(lambda key: image.position_noise(key, *canvas, 4))(keys[1])  # noqa: B023
        np.testing.assert_array_equal(small, large[1, : canvas[0], : canvas[1]])
    assert not np.array_equal(large[0], large[1])


def test_noise_is_standard_normal_and_uncorrelated():
    noise = np.asarray(
        jax.jit(lambda key: image.position_noise(key, 64, 96, 4))(jax.random.key(0)), np.float64
    )
    n = noise.size
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.std() - 1) < 4 / (2 * n) ** 0.5
    assert len(np.unique(noise)) > 0.99 * n
    neighbours = [
        (noise[1:] * noise[:-1]).mean(),
        (noise[:, 1:] * noise[:, :-1]).mean(),
        (noise[..., 1:] * noise[..., :-1]).mean(),
        (noise[:64, :64] * noise[:64, :64].swapaxes(0, 1)).mean(),
    ]
    # The last one has the diagonal in it: 1/64 of the positions equal themselves.
    np.testing.assert_allclose(neighbours, [0, 0, 0, 1 / 64], atol=5 / n**0.5 * 2**0.5)


def test_float64_noise_is_the_float32_draw():
    key = jax.random.key(1)
    draw = jax.jit(lambda dtype: image.position_noise(key, 6, 5, 4, dtype), static_argnums=0)
    single = draw(jnp.float32)
    with jax.enable_x64(True):
        double = draw(jnp.float64)
    assert double.dtype == np.float64
    np.testing.assert_array_equal(np.asarray(double), np.asarray(single).astype(np.float64))
