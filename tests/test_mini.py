"""The model that ships, as a user runs it: exact sizes, and results of content and seed alone."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_pipeline import assert_same_picture

from dossr_jax import Upscaler
from dossr_jax.restore import restore

EXAMPLES = Path(__file__).parent.parent / "examples"


def photo(name: str, height: int, width: int) -> np.ndarray:
    """A sample photo at another size."""
    with Image.open(EXAMPLES / f"{name}.png") as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


@pytest.fixture(scope="module")
def mini() -> Upscaler:
    return Upscaler.from_pretrained("dossr-mini", devices=jax.devices()[:1])


def test_small_images_at_every_scale_are_one_program(mini):
    before = restore._cache_size()
    for height, width in ((1, 1), (7, 5), (32, 19)):
        image = photo("city", height, width)
        for scale in (1, 2, 2.5, 4, 8):
            result = mini.restore(image, scale=scale)
            assert result.shape == (max(1, round(scale * height)), max(1, round(scale * width)), 3)
    assert restore._cache_size() == before + 1


@pytest.mark.slow
def test_large_images_at_every_scale_are_one_program(mini):
    before = restore._cache_size()
    image = photo("lake", 133, 40)
    for scale in (1, 2.5, 8):
        result = mini.restore(image, scale=scale, steps=1)
        assert result.shape == (round(scale * 133), round(scale * 40), 3)
    assert restore._cache_size() == before + 1
    assert mini.restore(photo("lake", 33, 65), steps=1).shape == (132, 260, 3)


def test_results_keep_to_the_photo(mini):
    image = photo("snow", 32, 32)
    result = Image.fromarray(mini.restore(image)).resize((32, 32), Image.Resampling.BOX)
    error = np.abs(np.asarray(result, int) - image)
    assert error.mean() < 6


@pytest.mark.slow
def test_tiles_leave_no_seam(mini):
    whole = Upscaler.from_pretrained("dossr-mini", tile=0, devices=jax.devices()[:1])
    image = photo("city", 140, 150)
    together, tiled = (u.restore(image).astype(int) for u in (whole, mini))
    difference = tiled - together
    # 45 dB. Tiles end with the image; an untiled canvas goes on by reflection, which the last 64
    # rows and columns see. Everywhere else 57 dB, and 6 levels at most.
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 44
    inside = difference[:-64, :-64]
    assert 10 * np.log10(255**2 / np.mean(inside**2)) > 52
    assert np.abs(inside).max() <= 14
    # Nowhere does a row or a column step away from the untiled picture: 0.6 levels at most.
    for axis in (0, 1):
        steps = np.abs(np.diff(inside.mean(-1), axis=axis)).mean(1 - axis)
        assert steps.max() < 1


_FOUR_DEVICES = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_mini import compare_devices
compare_devices()
"""


def compare_devices() -> None:
    """An image alone on one device, in a batch of four, and shared by four devices."""
    devices = jax.devices()
    assert len(devices) == 4
    one, four = (Upscaler.from_pretrained("dossr-mini", devices=devices[:n]) for n in (1, 4))
    for size, count in (((20, 30), 4), ((20, 140), 2)):  # on one canvas, and in two tiles
        images = [photo(name, *size) for name in ("city", "lake", "launchpad", "snow")[:count]]
        alone = [one.restore(image, seed=5) for image in images]
        batch = one.restore(images, seed=5, batch_size=4)
        shared = four.restore(images, seed=5, batch_size=4)
        for picture, *others in zip(alone, batch, shared, strict=True):
            for other in others:
                assert_same_picture(picture, other)
        assert_same_picture(alone[0], four.restore(images[0], seed=5))
    print("same")


@pytest.mark.slow
def test_neither_batch_nor_devices_change_a_picture():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("same"), run.stderr[-2000:]
