"""dossr_jax.image_io: what is read, what is written, and how it fails."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

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


def smooth():
    ramp = np.linspace(20, 230, 48)
    return np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 128.0), -1).astype(np.uint8)


# Finding


def test_folders_are_searched_and_other_files_are_not_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/deep/c.webp", ".hidden/d.png"):
        save(tmp_path / name, PHOTO)
    for name in ("Thumbs.db", "notes.txt", ".e.png", "sub/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    found = image_io.find_images([tmp_path])
    assert [i.relative.as_posix() for i in found] == ["a.jpg", "b.PNG", "sub/deep/c.webp"]
    assert all(i.path == tmp_path / i.relative for i in found)


def test_named_files_are_taken_as_they_are_and_once(tmp_path):
    photo, other = save(tmp_path / "a.png", PHOTO), tmp_path / "notes.txt"
    other.write_text("x")
    found = image_io.find_images([str(photo), tmp_path / "." / "a.png", other, tmp_path])
    assert [i.relative.as_posix() for i in found] == ["a.png", "notes.txt"]


def test_output_folder_inside_an_input_folder_is_skipped(tmp_path):
    for name in ("a.png", "out/a.png"):
        save(tmp_path / name, PHOTO)
    found = image_io.find_images([tmp_path], exclude=tmp_path / "out")
    assert [i.relative.as_posix() for i in found] == ["a.png"]
    same = image_io.find_images([tmp_path / "out"], exclude=tmp_path / "out")
    assert [i.relative.as_posix() for i in same] == ["a.png"]


def test_paths_without_images_are_errors(tmp_path):
    assert "no such file" in user_error(image_io.find_images, [tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    message = user_error(image_io.find_images, [tmp_path / "empty"])
    assert str(tmp_path / "empty") in message and "no images" in message
    assert "too long" in user_error(image_io.find_images, ["x" * 300])
    assert "neither" in user_error(image_io.find_images, [os.devnull])


def test_results_that_would_overwrite_each_other_are_an_error(tmp_path):
    one, two = save(tmp_path / "x" / "a.png", PHOTO), save(tmp_path / "y" / "a.png", PHOTO)
    assert "a.png" in user_error(image_io.find_images, [one, two])
    assert len(image_io.find_images([tmp_path])) == 2


# Reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_round_trip(tmp_path, suffix):
    image_io.write_image(tmp_path / f"a{suffix}", PHOTO)
    read = image_io.read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, PHOTO)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_stay_close(tmp_path, suffix):
    image_io.write_image(tmp_path / f"a{suffix}", smooth())
    read = image_io.read_image(tmp_path / f"a{suffix}").astype(int)
    assert np.abs(read - smooth()).max() <= 8


def test_jpeg_keeps_full_chroma_resolution(tmp_path):
    image_io.write_image(tmp_path / "a.jpg", PHOTO)
    with Image.open(tmp_path / "a.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # Pillow's code for 4:4:4


def test_suffix_does_not_decide_how_a_file_is_read(tmp_path):
    save(tmp_path / "photo.jpg", PHOTO, format="PNG")
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "photo.jpg"), PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", smooth()[:, :24], exif=exif)
    x = smooth()[:, :24]
    want = {
        1: x,
        2: x[:, ::-1],
        3: x[::-1, ::-1],
        4: x[::-1],
        5: x.swapaxes(0, 1),
        6: np.rot90(x, -1),
        7: x[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(x),
    }[orientation]
    read = image_io.read_image(path)
    assert read.shape == want.shape
    assert np.abs(read.astype(int) - want).max() <= 16


def test_every_mode_becomes_rgb(tmp_path):
    grey = PHOTO[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, -1)

    def read(image, **options):
        return image_io.read_image(save(tmp_path / "a.tif", image, **options))

    np.testing.assert_array_equal(read(grey), as_rgb)
    np.testing.assert_array_equal(read(Image.fromarray(grey > 127)), 255 * (as_rgb > 127))
    palette = Image.fromarray(PHOTO).quantize(16)
    np.testing.assert_array_equal(read(palette), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(read(grey.astype(np.uint16) * 257), as_rgb)
    np.testing.assert_array_equal(read(grey.astype(np.int32) * 257), as_rgb)
    cmyk = Image.fromarray(PHOTO).convert("CMYK")
    np.testing.assert_array_equal(read(cmyk), np.asarray(cmyk.convert("RGB")))
    floats = save(tmp_path / "f.tif", grey.astype(np.float32))
    assert "floating-point" in user_error(image_io.read_image, floats)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((12, 20, 1), np.uint8)
    alpha[:6] = 255
    want = np.where(alpha == 255, PHOTO, 255)
    path = save(tmp_path / "a.png", np.concatenate([PHOTO, alpha], -1))
    np.testing.assert_array_equal(image_io.read_image(path), want)
    grey = save(tmp_path / "la.png", Image.fromarray(np.dstack([PHOTO[..., 0], alpha]), "LA"))
    want = np.broadcast_to(np.where(alpha == 255, PHOTO[..., :1], 255), PHOTO.shape)
    np.testing.assert_array_equal(image_io.read_image(grey), want)
    keyed = save(tmp_path / "k.png", np.zeros((2, 2, 3), np.uint8), transparency=(0, 0, 0))
    assert (image_io.read_image(keyed) == 255).all()
    palette = Image.fromarray(PHOTO).quantize(16)
    path = save(tmp_path / "p.png", palette, transparency=3)
    hidden = np.asarray(palette) == 3
    assert hidden.any() and (image_io.read_image(path)[hidden] == 255).all()


def test_colour_profiles_become_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "s.png", PHOTO, icc_profile=srgb)
    np.testing.assert_array_equal(image_io.read_image(path), PHOTO)
    # The same primaries with red and blue exchanged, under another name.
    other = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    other = other.replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))
    path = save(tmp_path / "o.png", PHOTO, icc_profile=other)
    assert np.abs(image_io.read_image(path).astype(int) - PHOTO[..., ::-1]).max() <= 2
    path = save(tmp_path / "bad.png", PHOTO, icc_profile=b"not a profile")
    np.testing.assert_array_equal(image_io.read_image(path), PHOTO)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(x) for x in (PHOTO, 255 - PHOTO)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "a.png"), PHOTO)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_damaged_files_are_one_line_errors(tmp_path, suffix):
    image_io.write_image(tmp_path / f"good{suffix}", PHOTO)
    data = (tmp_path / f"good{suffix}").read_bytes()
    bad = tmp_path / f"bad{suffix}"
    for length in (1, 9, 30, len(data) // 2):
        bad.write_bytes(data[:length])
        assert str(bad) in user_error(image_io.read_image, bad)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 6):
            broken[position] = rng.integers(256)
        bad.write_bytes(broken)
        try:  # Some damage cannot be noticed; what is, must come as a UserError.
            assert image_io.read_image(bad).ndim == 3
        except UserError as error:
            assert "\n" not in str(error)


def test_unreadable_inputs_are_one_line_errors(tmp_path, monkeypatch):
    (tmp_path / "zero.png").touch()
    assert "empty" in user_error(image_io.read_image, tmp_path / "zero.png")
    (tmp_path / "text.txt").write_text("hello\nworld")
    assert "not a PNG" in user_error(image_io.read_image, tmp_path / "text.txt")
    save(tmp_path / "a.gif", PHOTO)
    assert "not a PNG" in user_error(image_io.read_image, tmp_path / "a.gif")
    assert "No such file" in user_error(image_io.read_image, tmp_path / "none.png")
    assert "directory" in user_error(image_io.read_image, tmp_path)
    photo = save(tmp_path / "a.png", PHOTO)
    for limit in (200, 100):  # Pillow warns above its limit and refuses above twice the limit.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "million pixels" in user_error(image_io.read_image, photo)


def test_forbidden_files_are_one_line_errors(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    photo = save(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in user_error(image_io.read_image, photo)


# Writing


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    image_io.write_image(path, 255 - PHOTO)
    image_io.write_image(str(path), PHOTO)
    np.testing.assert_array_equal(image_io.read_image(path), PHOTO)
    assert os.listdir(path.parent) == ["a.png"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    image_io.write_image(path, PHOTO)
    real_open = open

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data[:10]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(name, mode="r", *args, **kwargs):
        return Full(name, mode) if "x" in mode else real_open(name, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_full)
    message = user_error(image_io.write_image, path, 255 - PHOTO)
    assert str(path) in message and "free some disk space" in message
    monkeypatch.undo()
    np.testing.assert_array_equal(image_io.read_image(path), PHOTO)
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_cannot_be_written_is_a_one_line_error(tmp_path):
    assert "cannot write this kind" in user_error(image_io.write_image, tmp_path / "a.gif", PHOTO)
    large = np.zeros((1, 16384, 3), np.uint8)
    assert "PNG" in user_error(image_io.write_image, tmp_path / "a.webp", large)
    (tmp_path / "file").touch()
    assert "cannot write" in user_error(image_io.write_image, tmp_path / "file" / "a.png", PHOTO)
    (tmp_path / "folder.png").mkdir()
    assert "cannot write" in user_error(image_io.write_image, tmp_path / "folder.png", PHOTO)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


# Resampling


@pytest.mark.parametrize("size", [(1, 1), (6, 10), (12, 20), (30, 50), (13, 19), (48, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_resample_gives_the_exact_size_and_keeps_constants(size, dtype):
    level = 77 if dtype == np.uint8 else 0.3
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
