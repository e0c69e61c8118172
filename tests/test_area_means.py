"""Laws of dossr_jax.area_means: mean colours stay whatever a model does, and little else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import tiny_model

from dossr_jax.area_means import AREA, keep_area_means
from dossr_jax.image import is_grey, pixels_to_levels, remove_color
from dossr_jax.pipeline import Upscaler

keep = jax.jit(keep_area_means)
SIZES = [(64, 80), (50, 37), (17, 33), (5, 7), (1, 1)]


def enlarged(lr: np.ndarray) -> np.ndarray:
    return lr.repeat(4, -3).repeat(4, -2)


def means(image: np.ndarray, area: int) -> np.ndarray:
    """Of all areas of an image (h, w, c), those cut off by its border included."""

    def sums(x):
        for axis in (0, 1):
            x = np.add.reduceat(x, range(0, x.shape[axis], area), axis)
        return x

    return sums(image.astype(np.float64)) / sums(np.ones(image.shape))


def furthest(result: np.ndarray, lr: np.ndarray) -> float:
    """Levels between mean colours of a result and of an LR picture, uint8 both."""
    return np.abs(means(result, AREA) - means(lr, AREA // 4)).max()


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    """Saturated and random colours in patches, checkerboards, waves and noise, uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]

    def patches(side: int, colors: int) -> np.ndarray:
        cells = rng.integers(0, colors, (-(-height // side), -(-width // side), 3))
        cells = np.uint8(cells * (255 // (colors - 1)))
        return cells.repeat(side, 0).repeat(side, 1)[:height, :width]

    def checkerboard(side: int) -> np.ndarray:
        odd = (y // side + x // side) % 2 == 1
        return np.where(odd[..., None], np.uint8([255, 0, 255]), np.uint8([0, 255, 90]))

    waves = np.stack([np.sin(a * x + b * y) for a, b in rng.uniform(0, 0.2, (3, 2))], -1)
    return {
        **{f"saturated {side}": patches(side, 2) for side in (3, 10, 16, 32)},
        **{f"colours {side}": patches(side, 256) for side in (1, 8, 24)},
        **{f"checkerboard {side}": checkerboard(side) for side in (1, 2, 16)},
        "waves": np.uint8(128 + 120 * waves),
        "white": np.full((height, width, 3), 255, np.uint8),
    }


def blurred(x: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        for _ in range(6):
            low, high = (np.take(x, [i], axis) for i in (0, -1))
            padded = np.concatenate([low, x, high], axis)
            n = x.shape[axis]
            x = sum(np.take(padded, range(i, i + n), axis) for i in range(3)) / 3
    return x


# What models do to colours, images in [0, 1].
MODELS = {
    "blurs": blurred,
    "fades": lambda x: 0.7 * x + 0.2,
    "exaggerates": lambda x: 1.4 * x - 0.3,
    "darkens": lambda x: 0.4 * blurred(x),
    "tints": lambda x: x + np.array([0.1, -0.08, 0.05]),
    "inverts": lambda x: 1 - x,
    "forgets": lambda x: 0 * x + 0.5,
    "grains": lambda x: x + 0.06 + 0.1 * np.random.default_rng(1).normal(size=x.shape),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_mean_colours_stay_within_a_level(model, size):
    """In all areas, small ones at the borders included, after rounding to 8 bits."""
    lr = np.stack(list(pictures(*size).values()))
    made = np.float32([MODELS[model](enlarged(np.float32(x) / 255)) for x in lr])
    sizes = jnp.tile(jnp.asarray([size], jnp.int32), (len(lr), 1))
    result = keep(jnp.asarray(made), jnp.asarray(lr, jnp.float32) / 255, sizes)
    assert 0 <= result.min() and result.max() <= 1
    for x, y in zip(np.asarray(pixels_to_levels(result)), lr, strict=True):
        assert furthest(x, y) <= 1


@pytest.mark.parametrize("model", ["tints", "grains", "fades"])
def test_a_canvas_and_neighbours_change_nothing(model):
    """What lies beyond an image is NaN here, on its canvas and in the LR one."""
    rng = np.random.default_rng(2)
    canvas = np.full((len(SIZES), 70, 90, 3), np.nan, np.float32)
    made = np.full((len(SIZES), 280, 360, 3), np.nan, np.float32)
    alone = []
    for i, (h, w) in enumerate(SIZES):
        lr = np.float32(rng.choice([0, 0.2, 0.5, 1], (h, w, 3)))
        lr[: h // 2] = np.round(lr[: h // 2, :1])
        image = np.float32(MODELS[model](enlarged(lr)))
        canvas[i, :h, :w], made[i, : 4 * h, : 4 * w] = lr, image
        size = jnp.asarray([(h, w)], jnp.int32)
        alone.append(keep(jnp.asarray(image)[None], jnp.asarray(lr)[None], size)[0])
    together = keep(jnp.asarray(made), jnp.asarray(canvas), jnp.asarray(SIZES, jnp.int32))
    for x, (h, w), want in zip(together, SIZES, alone, strict=True):
        np.testing.assert_allclose(x[: 4 * h, : 4 * w], want, atol=1e-5)


def test_what_keeps_its_colours_is_left_alone():
    """Detail, of no mean over any pixel of the input, and noise of that input alike."""
    rng = np.random.default_rng(3)
    smooth = np.float32(pictures(64, 80)["waves"]) / 510 + 0.25
    detail = np.float32(rng.choice([-0.2, 0.2], (64, 80, 3)))
    detail = enlarged(detail) * np.tile(np.float32([[1, -1], [-1, 1]]), (128, 160))[..., None]
    size = jnp.asarray([(64, 80)], jnp.int32)
    made = jnp.asarray(enlarged(smooth) + detail)[None]
    np.testing.assert_allclose(keep(made, jnp.asarray(smooth)[None], size), made, atol=1e-6)
    noise = np.float32(rng.normal(size=smooth.shape) * 10 / 255)
    back = np.asarray(keep(made, jnp.asarray(smooth + noise)[None], size) - made) * 255
    # Of 10 levels of noise 0.8 come back, in waves of more than 16 pixels of the input; the means
    # of areas alone make 0.6 of that.
    assert back.std() < 0.9
    for axis in (1, 2):
        assert np.abs(np.diff(back, axis=axis)).max() < 0.5


def test_a_change_of_colour_is_undone_without_blocks():
    """Nowhere, borders of areas included, does the correction step by more than it slopes."""
    lr = np.float32(pictures(64, 80)["waves"]) / 510 + 0.25
    made = np.float32(0.8 * enlarged(lr) + 0.02)
    size = jnp.asarray([(64, 80)], jnp.int32)
    change = np.asarray(keep(jnp.asarray(made)[None], jnp.asarray(lr)[None], size))[0] - made
    for axis in (0, 1):
        assert np.abs(np.diff(change, axis=axis)).max() < 1.5 / 255
        assert np.abs(np.diff(change, n=2, axis=axis)).max() < 0.5 / 255


def test_grey_stays_grey():
    grey = jnp.asarray(np.random.default_rng(4).uniform(size=(1, 20, 30, 1)), jnp.float32)
    lr = jnp.tile(grey, (1, 1, 1, 3))
    made = jnp.asarray(MODELS["tints"](enlarged(np.asarray(lr))), jnp.float32)
    kept = keep(made, lr, jnp.asarray([(20, 30)], jnp.int32))
    result = np.asarray(pixels_to_levels(remove_color(kept, is_grey(lr))))
    assert (result == result[..., :1]).all()
    assert furthest(result[0], np.asarray(lr[0]) * 255) <= 1


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        lr = jnp.asarray(np.random.default_rng(5).uniform(size=(1, 20, 30, 3)))
        made = jnp.asarray(0.8 * enlarged(np.asarray(lr)))
        result = keep(made, lr, jnp.asarray([(20, 30)], jnp.int32))
    assert result.dtype == np.float64


@pytest.mark.parametrize("settings", [{}, {"diffuse": False}])
def test_restoration_keeps_mean_colours(settings):
    """Of a model with random weights, whole and in tiles."""
    upscaler = Upscaler(tiny_model(), tile=128, devices=jax.devices()[:1])
    for size in ((20, 30), (40, 50)):
        images = list(pictures(*size).values())[::3]
        results = upscaler.restore(images, steps=1, batch_size=4, **settings)
        for image, result in zip(images, results, strict=True):
            assert furthest(result, image) <= 1
