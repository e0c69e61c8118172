"""Metrics by name, MATLAB's bicubic and LR images: conventions as laws."""

import numpy as np
import pytest
import skimage.data
from helpers.pictures import picture
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dossr_jax.errors import UserError
from dossr_jax.evaluate import METRICS, bicubic, convention, crop_to_multiple, make_lr, score
from dossr_jax.evaluate import tiles as tiles_module
from dossr_jax.evaluate.scores import luma

OWN = ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"]


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    image = picture(height, width)
    noise = np.random.default_rng(1).normal(0, 9, image.shape)
    return np.uint8(np.clip(image + noise, 0, 255)), image


@pytest.mark.parametrize("size", [(20, 300), (277, 545), (266, 266), (267, 19)])
@pytest.mark.parametrize("border", [0, 4])
def test_agrees_with_scikit_image(size, border):
    image, reference = pair(*size)
    got = score(image, reference, OWN, border=border)
    image, reference = (
        a[border : size[0] - border, border : size[1] - border] for a in (image, reference)
    )
    ssim = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
    }
    rgb = [a.astype(float) for a in (reference, image)]
    y = [luma(a) for a in (reference, image)]
    want = {
        "psnr_y": peak_signal_noise_ratio(*y, data_range=255.0),
        "psnr_rgb": peak_signal_noise_ratio(*rgb, data_range=255.0),
        "ssim_y": structural_similarity(*y, **ssim),
        "ssim_rgb": structural_similarity(*rgb, channel_axis=-1, **ssim),
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


def test_all_sizes_share_two_programs_a_channel_count():
    tiles_module._sum.clear_cache()
    for size in ((30, 40), (270, 280), (300, 600), (60, 700), (511, 513)):
        score(*pair(*size), ["ssim_rgb"])
    assert tiles_module._sum._cache_size() <= 2


def test_equal_images_are_perfect():
    _, image = pair(40, 50)
    perfect = {"psnr_y": np.inf, "psnr_rgb": np.inf, "ssim_y": 1.0, "ssim_rgb": 1.0}
    assert score(image, image, OWN) == pytest.approx(perfect, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_every_convention_says_what_is_better_and_what_is_cut(name):
    text = convention(name, border=7)
    assert text.endswith(f"{METRICS[name].better} is better") and "\n" not in text
    assert ("7 px border" in text) == METRICS[name].cropped


@pytest.mark.parametrize(
    "size, other, names, words",
    [
        ((40, 40), (40, 41), ["psnr_y"], "40x40 pixels against 41x40"),
        ((40, 40), None, ["psnr_y"], "psnr_y needs a reference"),
        ((18, 40), (18, 40), ["ssim_y"], "too few for ssim_y: it needs 11"),
        ((40, 40), (40, 40), ["psnr_z"], "psnr_y"),
    ],
)
def test_what_cannot_be_measured_says_why(size, other, names, words):
    reference = None if other is None else np.zeros((*other, 3), np.uint8)
    with pytest.raises(UserError, match=words):
        score(np.zeros((*size, 3), np.uint8), reference, names)


def test_bicubic_keeps_what_matlab_keeps():
    """Constants, straight lines away from the edges, and the sizes; mirrored symmetrically."""
    assert (
        bicubic.resize_uint8(np.full((5, 7, 3), 77, np.uint8), 4).tolist() == [[[77] * 3] * 28] * 20
    )
    line = np.tile(np.arange(64.0), (8, 1))
    for scale in (4, 0.5, 0.25):
        got = bicubic.resize(line, scale)
        want = (np.arange(64 * scale) + 0.5) / scale - 0.5
        inside = slice(int(4 * max(1, scale)), -int(4 * max(1, scale)))
        np.testing.assert_allclose(got[:, inside], want[None, inside].repeat(8 * scale, 0))
    image = skimage.data.chelsea()[:41, :30].astype(float)
    for scale in (4, 0.25):
        assert bicubic.resize(image, scale).shape == (np.ceil(41 * scale), np.ceil(30 * scale), 3)
        mirrored = np.pad(image, ((8, 8), (8, 8), (0, 0)), "symmetric")
        edge = int(8 * scale)
        inside = bicubic.resize(mirrored, scale)[edge : edge + 8, edge : edge + 7]
        np.testing.assert_allclose(inside[:8, :7], bicubic.resize(image, scale)[:8, :7])


def test_bicubic_rounds_between_the_axes():
    """MATLAB rounds and clips 8-bit images after the first axis and after the second."""
    image = picture(16, 24)
    rows = bicubic.resize(image.astype(float), 0.25)
    assert np.abs(bicubic.resize_uint8(image, 0.25) - rows).max() <= 1.5
    step = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((8, 8), np.uint8))
    once = np.round(np.clip(bicubic.resize(step, 4), 0, 255))
    assert (bicubic.resize_uint8(step, 4) != once).any()


def test_lr_images_depend_on_content_preset_seed_and_name():
    hr = crop_to_multiple(picture(67, 66), 4)
    assert hr.shape == (64, 64, 3)
    options = {"preset": "light", "seed": 3, "name": "a"}
    lr = make_lr(hr, **options)
    assert lr.shape == (16, 16, 3) and lr.dtype == np.uint8
    make_lr(hr[::-1], **options)
    np.testing.assert_array_equal(make_lr(hr, **options), lr)
    for change in ({"seed": 4}, {"name": "b"}):
        assert (make_lr(hr, **(options | change)) != lr).any()


def test_lr_images_of_the_bicubic_preset_are_pillows():
    hr = picture(64, 80)
    want = np.asarray(Image.fromarray(hr).resize((20, 16), Image.Resampling.BICUBIC), int)
    got = make_lr(hr, preset="bicubic", seed=0, name="a")
    assert np.abs(got - want).max() <= 1


def test_unknown_presets_are_named():
    with pytest.raises(UserError, match="realesrgan"):
        make_lr(np.zeros((8, 8, 3), np.uint8), preset="nothing", seed=0, name="a")
