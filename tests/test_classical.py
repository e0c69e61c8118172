"""Laws of the baselines without learning."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from dossr_jax.errors import UserError
from dossr_jax.evaluate import classical
from dossr_jax.evaluate.__main__ import main

PHOTO = skimage.data.astronaut()[:100, 150:280]


def error(image, of=PHOTO):
    return np.sqrt(np.mean((image.astype(float) - of) ** 2))


@pytest.mark.parametrize("sigma", [10, 30])
def test_noise_is_measured_and_taken_away(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, PHOTO.shape)
    flat = 128 + noise
    assert classical.noise_level(flat) == pytest.approx(sigma, rel=0.03)
    noisy = np.clip(np.rint(PHOTO + noise), 0, 255).astype(np.uint8)
    assert error(classical.non_local_means(noisy)) < 0.9 * error(noisy)
    assert classical.noise_level(PHOTO[:2]) == 0  # too small to tell


def test_blur_is_taken_away():
    blurred = np.rint(gaussian_filter(PHOTO.astype(float), (1, 1, 0))).astype(np.uint8)
    assert error(classical.richardson_lucy(blurred)) < 0.98 * error(blurred)


def test_holes_are_filled_and_the_rest_stays():
    hole = np.zeros(PHOTO.shape[:2], bool)
    hole[40:46] = True
    image = np.where(hole[..., None], np.uint8(128), PHOTO)
    keep = (255 * ~hole).astype(np.uint8)
    filled = classical.telea(np.concatenate([image, keep[..., None]], axis=-1))
    np.testing.assert_array_equal(filled[~hole], PHOTO[~hole])
    assert error(filled[hole], PHOTO[hole]) < 0.5 * error(image[hole], PHOTO[hole])
    np.testing.assert_array_equal(classical.telea(image), image)  # nothing is said to be missing


def test_they_are_measured_at_scale_1(tmp_path, capsys):
    (tmp_path / "hr").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "hr" / "cat.png")
    run = ["--hr", tmp_path / "hr", "--preset", "inpaint", "--baselines", "input", "telea"]
    run = [*map(str, run), "--repeats", "0", "--metrics", "psnr_y"]
    assert main([*run, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    scores = [row["mean"]["psnr_y"] for row in report["results"]]
    assert scores[1] > scores[0] + 5
    # One result alone is compared with what it was made from, which has a channel for holes.
    page = tmp_path / "page.html"
    telea = [*run[:4], "--baselines", "telea", "--repeats", "0", "--html", str(page)]
    assert main([*telea, "--metrics", "psnr_y"]) == 0 and "LR" in page.read_text()
    assert main([*run, "--preset", "light"]) == 2
    assert "baseline input does not enlarge" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dossr-jax\[classical\]"):
        classical.check("nlm")
    classical.check("input")
