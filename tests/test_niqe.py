"""NIQE: the published value, and the order of what looks better."""

import importlib.util
import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
from PIL import Image

from dossr_jax.errors import UserError
from dossr_jax.evaluate.niqe import niqe
from dossr_jax.evaluate.scores import luma, score

# What basicsr 1.4.2 gives (calculate_niqe(image[..., ::-1], 0)), with NumPy 2.4.6, SciPy 1.17.1.
PUBLISHED = {
    "astronaut": 3.06460685312984,
    "coffee": 4.115241611108773,
    "chelsea": 2.6255364132341055,
    "rocket": 6.969130721865996,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_the_published_implementation(name):
    image = getattr(skimage.data, name)()
    np.testing.assert_allclose(niqe(luma(image)), PUBLISHED[name], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_values_are_those_of_basicsr(name, monkeypatch):
    """BasicSR itself, without the parts of it that need torchvision and an old SciPy."""
    found = importlib.util.find_spec("basicsr")
    if found is None:
        pytest.skip("pip install --no-deps --no-build-isolation basicsr==1.4.2")
    root = Path(found.origin).parent
    for module in ("", "/metrics", "/utils"):
        package = types.ModuleType("basicsr" + module.replace("/", "."))
        package.__path__ = [str(root) + module]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    filters = types.ModuleType("scipy.ndimage.filters")
    filters.convolve = scipy.ndimage.convolve
    monkeypatch.setitem(sys.modules, "scipy.ndimage.filters", filters)
    from basicsr.utils import color_util

    sys.modules["basicsr.utils"].bgr2ycbcr = color_util.bgr2ycbcr
    from basicsr.metrics.niqe import calculate_niqe

    image = getattr(skimage.data, name)()
    # BasicSR rounds Y in float32: where it is a half, the CPU's order of summation decides between
    # two levels. Of the nine such pixels of "astronaut", each moves the value by up to 2.5e-4.
    np.testing.assert_allclose(calculate_niqe(image[..., ::-1], 0), PUBLISHED[name], rtol=5e-4)


def blurred(image: np.ndarray, strength: float) -> np.ndarray:
    sigma = (strength, strength, 0)
    return np.uint8(np.round(scipy.ndimage.gaussian_filter(image.astype(float), sigma)))


def noisy(image: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, strength, image.shape)
    return np.uint8(np.clip(image + noise, 0, 255))


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "degrade, strengths",
    [(blurred, (1, 2, 4)), (noisy, (10, 25, 50)), (compressed, (30, 10, 3))],
)
@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_worse_images_have_higher_values(name, degrade, strengths):
    image = getattr(skimage.data, name)()
    values = [niqe(luma(x)) for x in (image, *(degrade(image, s) for s in strengths))]
    assert values == sorted(values), values


def test_pixels_outside_whole_blocks_do_not_count():
    image = skimage.data.chelsea()
    cut = image[: 300 // 96 * 96, : 451 // 96 * 96]
    assert niqe(luma(image)) == niqe(luma(cut))


def test_images_that_have_no_niqe():
    with pytest.raises(UserError, match="flat"):
        score(np.full((200, 300, 3), 100, np.uint8), None, ["niqe"])
    with pytest.raises(UserError, match="192"):
        score(np.zeros((191, 300, 3), np.uint8), None, ["niqe"])
