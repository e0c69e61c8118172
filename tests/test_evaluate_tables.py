"""The metrics of the field's tables: pyiqa's values, and the steps in which they are not ours."""

import numpy as np
import pytest
import scipy.io
import skimage.data
import torch
from helpers.pyiqa import import_pyiqa

from dossr_jax.errors import UserError
from dossr_jax.evaluate import bicubic, niqe, score, tables

NAMES = ("psnr_y_table", "ssim_y_table", "niqe_table")
# What pyiqa 0.1.16 gives (torch 2.13.0, CPU) for the pairs below, and NIQE of the reference.
PUBLISHED = {
    "astronaut": (26.88439178466797, 0.8441659387966193, 7.027529006260645, 3.062388045531781),
    "coffee": (27.290435791015625, 0.7618103091830656, 7.39388093962817, 4.061590026361292),
    "chelsea": (31.596067428588867, 0.8098086734635739, 7.758577492625278, 2.5720785436149978),
    "rocket": (29.80333709716797, 0.8507077877106051, 8.511994922583177, 7.035578828610571),
}


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A photo made a quarter of its size and enlarged again by bicubic, and the photo."""
    image = getattr(skimage.data, name)()
    image = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
    return bicubic.resize_uint8(bicubic.resize_uint8(image, 0.25), 4), image


def measured(image: np.ndarray, reference: np.ndarray) -> list[float]:
    return [*score(image, reference, NAMES).values(), tables.niqe(reference)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_pyiqa(name):
    np.testing.assert_allclose(measured(*pair(name)), PUBLISHED[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_values_are_those_of_pyiqa(name, tmp_path):
    """With the field's options; NIQE's parameters are those of the package, in LIVE's layout."""
    pyiqa = import_pyiqa()
    mean, covariance = niqe.natural()
    path = tmp_path / "parameters.mat"
    scipy.io.savemat(path, {"mu_prisparam": mean[None], "cov_prisparam": covariance})
    luma = {"test_y_channel": True, "color_space": "ycbcr"}
    psnr, ssim = (pyiqa.create_metric(m, device="cpu", **luma) for m in ("psnr", "ssim"))
    theirs = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=str(path))
    image, reference = pair(name)
    x, y = (
        torch.from_numpy(np.moveaxis(a, -1, 0)[None].astype(np.float32) / 255)
        for a in (image, reference)
    )
    values = [psnr(x, y).item(), ssim(x, y).item(), theirs(x).item(), theirs(y).item()]
    np.testing.assert_allclose(values, PUBLISHED[name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(measured(image, reference), values, rtol=0, atol=1e-5)


def test_what_the_tables_convention_changes():
    """PSNR is the same but for its limit; SSIM cannot be negative, and sees the whole image."""
    _, image = pair("chelsea")
    assert tables.psnr_y(image, image) == pytest.approx(80)
    assert tables.ssim_y(image, image) == pytest.approx(1)
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 60, 3), np.uint8)
    own = score(*noise, ["psnr_y", "ssim_y"], border=0)
    assert tables.psnr_y(*noise) == pytest.approx(own["psnr_y"], abs=1e-4)
    turned = 255 - noise[0]
    assert score(turned, noise[0], ["ssim_y"])["ssim_y"] < 0 <= tables.ssim_y(turned, noise[0])
    framed = noise[0].copy()
    framed[:2] = 0
    assert score(framed, noise[0], ["psnr_y"])["psnr_y"] == np.inf
    assert tables.psnr_y(framed, noise[0]) < 30


def test_one_block_is_enough_for_niqe_and_a_flat_one_is_not():
    _, image = pair("coffee")
    assert 0 < score(image[:96, :150], None, ["niqe_table"])["niqe_table"] < 50
    for flat in (0, 100):
        with pytest.raises(UserError, match="flat"):
            score(np.full((96, 96, 3), flat, np.uint8), None, ["niqe_table"])
    with pytest.raises(UserError, match="96"):
        score(image[:95], None, ["niqe_table"])
