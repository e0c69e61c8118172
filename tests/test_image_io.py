"""dossr_jax.image_io: what is read, what is written, and how it fails."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dossr_jax import image_io
from dossr_jax.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)


def user_error(call, *args):
    """The one-line message of the UserError that `call` must raise."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and ";" in message, message
    return message


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


# Finding


def test_folders_are_searched_and_other_files_are_not_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/deep/c.webp", ".hidden/d.png"):
        save(tmp_path / name, PHOTO)
    for name in ("Thumbs.db", "notes.txt", ".e.png", "sub/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    found = image_io.find_images(tmp_path)
    assert found == [tmp_path / name for name in ("a.jpg", "b.PNG", "sub/deep/c.webp")]


def test_paths_without_images_are_errors(tmp_path):
    assert "no such file or folder" in user_error(image_io.find_images, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    message = user_error(image_io.find_images, tmp_path / "empty")
    assert str(tmp_path / "empty") in message and "no images" in message
    assert "no such file or folder" in user_error(image_io.find_images, Path("x" * 300))
    assert "not a folder" in user_error(image_io.find_images, Path(os.devnull))
    assert "not a folder" in user_error(image_io.find_images, save(tmp_path / "a.png", PHOTO))


# Reading


def test_every_file_becomes_rgb_of_8_bits(tmp_path):
    grey = PHOTO[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, -1)
    for image in (grey, grey.astype(np.uint16) * 257, Image.fromarray(grey).convert("L")):
        read = image_io.read_image(save(tmp_path / "a.png", image))
        np.testing.assert_array_equal(read, as_rgb)
    image_io.write_image(tmp_path / "a.png", PHOTO)
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "a.png"), PHOTO)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((12, 20, 1), np.uint8)
    alpha[:6] = 255
    path = save(tmp_path / "a.png", np.concatenate([PHOTO, alpha], -1))
    want = np.where(alpha == 255, PHOTO, 255)
    np.testing.assert_array_equal(image_io.read_image(path), want)


def test_colour_profiles_become_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "s.png", PHOTO, icc_profile=srgb)
    np.testing.assert_array_equal(image_io.read_image(path), PHOTO)
    # The same primaries with red and blue exchanged, under the same name.
    other = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    path = save(tmp_path / "o.png", PHOTO, icc_profile=other)
    assert np.abs(image_io.read_image(path).astype(int) - PHOTO[..., ::-1]).max() <= 2


# Resampling


@pytest.mark.parametrize("size", [(1, 1), (6, 10), (12, 20), (30, 50), (13, 19), (48, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_resample_gives_the_exact_size_and_keeps_constants(size, dtype):
    level = 77 if dtype in (np.uint8, np.uint16) else 0.3
    x = image_io.resample(np.full((12, 20, 3), level, dtype), *size)
    assert x.shape == (*size, 3) and x.dtype == dtype
    np.testing.assert_allclose(x, level, atol=1e-6)


def test_resample_of_floats_and_bytes_agree():
    x = 64 + PHOTO // 2  # nothing to clip
    for size in ((7, 11), (31, 33)):
        as_bytes = image_io.resample(x, *size).astype(float)
        as_floats = image_io.resample(x.astype(np.float32), *size)
        # Pillow rounds bytes after each of its two passes.
        np.testing.assert_allclose(as_bytes, as_floats, atol=1.3)


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[:, ::2] = 1
    small = image_io.resample(stripes, 16, 16)
    np.testing.assert_allclose(small[:, 2:-2], 0.5, atol=0.02)


def test_output_size():
    assert image_io.output_size(500, 333, 4) == (2000, 1332)
    assert image_io.output_size(7, 5, 2.5) == (18, 12)
    assert image_io.output_size(1, 1, 0.1) == (1, 1)
    assert image_io.output_size(33, 65, 1) == (33, 65)
