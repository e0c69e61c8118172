"""dossr_jax.smooth_areas: gradients of 16 bits stay gradients, detail is as restored."""

import jax.numpy as jnp
import numpy as np

from dossr_jax.smooth_areas import keep_smooth_areas


def kept(lr: np.ndarray, restored: np.ndarray, canvas=(24, 40)) -> np.ndarray:
    """lr (h, w) and restored (4h, 4w), each channel alike, on a canvas of NaN."""
    height, width = lr.shape
    lr_canvas = np.full((1, *canvas, 3), np.nan, np.float32)
    lr_canvas[0, :height, :width] = lr[..., None]
    large = np.full((1, 4 * canvas[0], 4 * canvas[1], 3), np.nan, np.float32)
    large[0, : 4 * height, : 4 * width] = restored[..., None]
    size = jnp.array([[height, width]], jnp.int32)
    result = keep_smooth_areas(jnp.array(large), jnp.array(lr_canvas), size)
    return np.asarray(result)[0, : 4 * height, : 4 * width, 0]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 0.1, (height, width)).astype(np.float32)


def test_a_ramp_goes_on_to_its_ends_whatever_networks_made_of_it():
    ramp = np.broadcast_to(np.linspace(0.1, 0.9, 33, dtype=np.float32), (9, 33))
    result = kept(ramp, noise(36, 132))
    step = 0.8 / 32 / 4
    np.testing.assert_allclose(np.diff(result, axis=1), step, atol=1e-5)
    np.testing.assert_allclose(result[:, 1:3].mean(), 0.1, atol=1e-5)


def test_detail_is_left_to_the_networks():
    lr, restored = noise(9, 33), noise(36, 132)
    np.testing.assert_array_equal(kept(lr, restored), restored)


def test_one_pixel_has_no_detail():
    np.testing.assert_allclose(kept(np.full((1, 1), 0.3, np.float32), noise(4, 4)), 0.3, atol=1e-6)
