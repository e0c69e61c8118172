"""PSNR and SSIM against scikit-image and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dossr_jax import metrics


def photos(dtype, shape=(3, 40, 33, 3)):
    """Smooth images in [0, 1] and noisy copies, the last pair almost flat."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal(shape)
    for axis in (1, 2):
        image = np.cumsum(image, axis=axis)
    image -= image.min(axis=(1, 2, 3), keepdims=True)
    image /= image.max(axis=(1, 2, 3), keepdims=True)
    image[-1] = 0.9 + 0.002 * image[-1]
    noise = 0.1 * rng.standard_normal(shape)
    noise[-1] *= 0.01
    return image.astype(dtype), np.clip(image + noise, 0, 1).astype(dtype)


@pytest.mark.parametrize(
    "dtype, db, similarity", [("float64", 1e-6, 1e-6), ("float32", 1e-4, 1e-5)]
)
@pytest.mark.parametrize("channel", ["rgb", "y"])
def test_agrees_with_scikit_image(dtype, db, similarity, channel):
    with jax.enable_x64(dtype == "float64"):
        image, reference = (jnp.asarray(a) for a in photos(dtype))
        assert image.dtype == dtype
        data_range = 1.0
        if channel == "y":
            image, reference, data_range = metrics.luma(image), metrics.luma(reference), 255.0
        got_psnr = metrics.psnr(image, reference, data_range=data_range)
        got_ssim = metrics.ssim(image, reference, data_range=data_range)
    assert got_psnr.shape == got_ssim.shape == (3,)
    for i, pair in enumerate(zip(image, reference, strict=True)):
        a, b = (np.asarray(x, np.float64) for x in pair)
        want = peak_signal_noise_ratio(b, a, data_range=data_range)
        np.testing.assert_allclose(got_psnr[i], want, atol=db, rtol=0)
        want = structural_similarity(
            b,
            a,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
            channel_axis=-1,
        )
        np.testing.assert_allclose(got_ssim[i], want, atol=similarity, rtol=0)


def test_luma_is_video_range_bt601():
    colours = jnp.asarray([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], jnp.float32)
    got = metrics.luma(colours[None, None])[0, 0, :, 0]
    want = [16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_equal_images_are_perfect():
    image = jnp.asarray(photos("float32")[0])
    assert np.isinf(metrics.psnr(image, image, data_range=1.0)).all()
    np.testing.assert_allclose(metrics.ssim(image, image, data_range=1.0), 1, rtol=1e-6)


def test_an_image_stands_for_itself_alone():
    """Numbers of an image depend on no other of its batch; SSIM does not mind which is first."""
    image, reference = map(jnp.asarray, photos("float32"))
    for fn in (metrics.psnr, metrics.ssim):
        whole = fn(image, reference, data_range=1.0)
        single = [fn(image[i : i + 1], reference[i : i + 1], data_range=1.0)[0] for i in range(3)]
        np.testing.assert_allclose(whole, single, rtol=1e-6)
        np.testing.assert_allclose(whole, fn(reference, image, data_range=1.0), rtol=2e-5)


def test_too_small_for_the_window_is_an_error():
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(jnp.zeros((1, 10, 40, 3)), jnp.zeros((1, 10, 40, 3)), data_range=1.0)


def test_lines_longer_than_a_block_of_the_window_agree_too():
    """The window mean works in blocks: nothing is lost where they meet."""
    image = photos("float64", (1, 150, 203, 1))[0]
    want = np.asarray(image)
    weights = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    for axis in (1, 2):
        want = np.apply_along_axis(np.convolve, axis, want, weights / weights.sum(), "valid")
    with jax.enable_x64(True):
        got = metrics._window_mean(jnp.asarray(image))
    np.testing.assert_allclose(got, want, rtol=1e-12)
