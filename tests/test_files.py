"""dossr_jax.files: what a file has is read, and what its format can hold is written again."""

import errno
import io
import itertools
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, JpegImagePlugin

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import Levels, Metadata, Photo, color

HEIGHT, WIDTH = 20, 36
_ADOBE = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
_SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))


def profile(colorants=None, gamma: float = 1.0) -> bytes:
    """An ICC profile (version 2) of a display with three colorants, or of greys."""

    def numbers(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    tags = {b"desc": name, b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0"}
    tags[b"wtpt"] += numbers(*white)
    if colorants is None:
        tags[b"kTRC"] = curve
    else:
        for channel, column in zip("rgb", zip(*colorants, strict=True), strict=True):
            tags[f"{channel}XYZ".encode()] = b"XYZ \0\0\0\0" + numbers(*column)
            tags[f"{channel}TRC".encode()] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data
    space = b"GRAY" if colorants is None else b"RGB "
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ "
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + numbers(*white)
    return head + b"\0" * 48 + struct.pack(">I", len(tags)) + table + body


PROFILES = {
    "none": {},
    "adobe": {"L": profile(gamma=2.2), "RGB": profile(_ADOBE, 2.2)},
    "linear": {"L": profile(gamma=1.0), "RGB": profile(_SRGB, 1.0)},
}


def pixels(mode: str, bits: int = 8) -> np.ndarray:
    """Smooth colours with some noise; alpha is soft, with empty and full parts."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 12
    waves = [0.5 + 0.3 * np.sin(a * x + b * y) for a, b in ((1, 0.3), (0.4, 1.1), (0.8, 0.8))]
    colors = np.stack(waves[: 1 if mode.startswith("L") else 3], -1)
    colors += rng.normal(0, 0.01, colors.shape)
    if mode.endswith("A"):
        disc = 1.5 - np.hypot(y - 0.8, x - 1.5)
        colors = np.dstack([colors, np.clip(disc, 0, 1)])
    return np.round(np.clip(colors, 0, 1) * (2**bits - 1)).astype(f"uint{bits}")


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x010F], data[0x0112], data[0x0132] = "Maker", orientation, "2019:05:04 03:02:01"
    data[0x011A], data[0x011B], data[0x0128] = 300.0, 300.0, 2
    data.get_ifd(0x8769).update({0x829A: 0.01, 0xA002: WIDTH, 0xA003: HEIGHT, 0x927C: b"\1\2\3\4"})
    data.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 1.5)})
    return data.tobytes().removeprefix(b"Exif\0\0")


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6" '
    b'exif:PixelXDimension="36" dc:title="A title"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x78\x00\x07A title"
METADATA = files.mended(
    Metadata(exif(1), XMP, IPTC, (300.0, 300.0), (("Title", "Ünï"), ("Comment", "hello"))),
    WIDTH,
    HEIGHT,
)


def written(photo: Photo, suffix: str, tmp_path, **options) -> Photo:
    files.write_photo(tmp_path / f"a{suffix}", photo, **options)
    return files.read_photo(tmp_path / f"a{suffix}")


# Everything comes back


LOSSLESS = list(itertools.product((".png", ".tif"), ("L", "LA", "RGB", "RGBA"), (8, 16), PROFILES))


@pytest.mark.parametrize(("suffix", "mode", "bits", "kind"), LOSSLESS)
def test_png_and_tiff_hold_everything(tmp_path, suffix, mode, bits, kind):
    icc = PROFILES[kind].get(mode.removesuffix("A"))
    wide = np.repeat(pixels(mode, bits), 2, axis=1)
    photo = Photo(wide[:, ::2], icc, METADATA)  # pixels need not be contiguous
    got = written(photo, suffix, tmp_path)
    assert (got.mode, got.bits, got.profile) == (mode, bits, icc)
    np.testing.assert_array_equal(got.pixels, photo.pixels)
    assert got.metadata.xmp == METADATA.xmp and got.metadata.iptc == IPTC
    np.testing.assert_allclose(got.metadata.dpi, (300, 300), atol=0.01)
    assert_same_tags(got.metadata.exif, METADATA.exif)
    probed = files.probe(tmp_path / f"a{suffix}")
    assert (probed.width, probed.height, probed.mode, probed.bits) == (WIDTH, HEIGHT, mode, bits)
    if suffix == ".png":
        assert dict(got.metadata.text) == dict(METADATA.text)


def assert_same_tags(got: bytes, wanted: bytes) -> None:
    """Makers', GPS and camera data are the same."""
    found, expected = Image.Exif(), Image.Exif()
    found.load(b"Exif\0\0" + got)
    expected.load(b"Exif\0\0" + wanted)
    assert {tag: found.get(tag) for tag in (0x010F, 0x0132)} == {
        tag: expected.get(tag) for tag in (0x010F, 0x0132)
    }
    for directory in (0x8769, 0x8825):
        assert dict(found.get_ifd(directory)) == dict(expected.get_ifd(directory))


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".jxl", ".jp2", ".bmp"])
def test_other_formats_hold_the_colours_and_say_what_they_lack(tmp_path, suffix, mode, kind):
    icc = PROFILES[kind].get(mode.removesuffix("A"))
    photo = Photo(pixels(mode), icc, METADATA)
    notes = files.write_photo(tmp_path / f"a{suffix}", photo, quality=100)
    got = files.read_photo(tmp_path / f"a{suffix}")
    assert got.pixels.shape[:2] == (HEIGHT, WIDTH)
    wanted = color.to_srgb(photo.colors, icc).astype(float)
    found = color.to_srgb(got.colors, got.profile).astype(float)
    if got.alpha is None and photo.alpha is not None:
        assert any("transparency" in note for note in notes)
    else:
        shown = np.ones((HEIGHT, WIDTH), bool) if photo.alpha is None else photo.alpha > 250
        assert np.abs(found - wanted)[shown].mean() < 3
        if photo.alpha is not None:
            assert np.abs(got.alpha.astype(int) - photo.alpha).max() <= 6
    name = files.SUFFIXES[suffix]
    holds = files.WRITABLE[name].holds
    for field in ("exif", "xmp", "iptc"):
        kept = bool(getattr(got.metadata, field))
        if (suffix, field) == (".jxl", "xmp"):  # Pillow's plugin writes it, but does not read it
            kept = METADATA.xmp in (tmp_path / "a.jxl").read_bytes()
        assert kept == (field in holds), field
        assert kept != any(field.upper() in note for note in notes), field
    if "exif" in holds:
        assert_same_tags(got.metadata.exif, METADATA.exif)
        comment = Image.Exif()
        comment.load(b"Exif\0\0" + got.metadata.exif)
        if "text" not in holds:
            assert "Ünï" in bytes(comment[0x9C9C]).decode("utf-16-le")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_orientation_is_applied_once(tmp_path, orientation, suffix):
    x = pixels("RGB")
    Image.fromarray(x).save(tmp_path / f"a{suffix}", exif=b"Exif\0\0" + exif(orientation))
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
    photo = files.read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.shape == want.shape
    assert np.abs(photo.pixels.astype(int) - want).mean() < 6
    probed = files.probe(tmp_path / f"a{suffix}")
    assert (probed.height, probed.width) == want.shape[:2]
    mended = files.mended(photo.metadata, 4 * photo.width, 4 * photo.height)
    found = Image.Exif()
    found.load(b"Exif\0\0" + mended.exif)
    assert found.get(0x0112, 1) == 1
    details = found.get_ifd(0x8769)
    assert (details[0xA002], details[0xA003]) == (4 * photo.width, 4 * photo.height)
    assert details[0x927C] == b"\1\2\3\4"


def test_sizes_in_xmp_are_mended_and_thumbnails_dropped():
    thumbnail = b"<xmp:Thumbnails><rdf:Alt>AAAA</rdf:Alt></xmp:Thumbnails>"
    mended = files.mended(Metadata(xmp=XMP + thumbnail), 144, 80)
    assert b'tiff:Orientation="1"' in mended.xmp and b'PixelXDimension="144"' in mended.xmp
    assert b"A title" in mended.xmp and b"AAAA" not in mended.xmp


def test_the_thumbnail_of_exif_is_dropped():
    small = io.BytesIO()
    Image.new("RGB", (16, 12)).save(small, "JPEG")
    data = bytearray(exif(6))
    order = ">" if data.startswith(b"MM") else "<"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    struct.pack_into(order + "I", data, start + 2 + 12 * count, len(data))
    place = len(data) + 2 + 24 + 4
    data += struct.pack(order + "HHHII", 2, 0x0201, 4, 1, place)
    data += struct.pack(order + "HHII", 0x0202, 4, 1, len(small.getvalue())) + b"\0" * 4
    data += small.getvalue()
    mended = files.mended(Metadata(exif=bytes(data)), 100, 70).exif
    assert small.getvalue() not in mended
    assert_same_tags(mended, files.mended(Metadata(exif(6)), 100, 70).exif)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_a_jpeg_is_encoded_as_it_was(tmp_path, subsampling, progressive):
    source = tmp_path / "source.jpg"
    options = {"quality": 71, "subsampling": subsampling, "progressive": progressive}
    Image.fromarray(pixels("RGB")).save(source, **options)
    files.write_photo(tmp_path / "result.jpg", files.read_photo(source))
    with Image.open(source) as before, Image.open(tmp_path / "result.jpg") as after:
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling
        assert bool(after.info.get("progressive")) == progressive
    files.write_photo(tmp_path / "other.jpg", files.read_photo(source), quality=95)
    assert (tmp_path / "other.jpg").stat().st_size > (tmp_path / "result.jpg").stat().st_size


# Numbers of other kinds


@pytest.mark.parametrize(
    ("dtype", "low", "high", "black", "white"),
    [
        ("uint16", 0, 4095, 0, 4095),  # 12 bits in 16
        ("int16", -1000, 3000, -1000, 3000),
        ("uint32", 0, 2**31, 0, 2**32 - 1),
        ("float32", 0.1, 0.9, 0, 1),
        ("float32", 0, 37.5, 0, 37.5),
        ("float64", -2.0, 2.0, -2, 2),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_every_depth_keeps_its_numbers(tmp_path, dtype, low, high, black, white, channels):
    share = np.linspace(0, 1, HEIGHT * WIDTH * channels).reshape(HEIGHT, WIDTH, channels)
    numbers = (low + share * (high - low)).astype(dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "in.tif", np.squeeze(numbers), photometric=photometric)
    photo = files.read_photo(tmp_path / "in.tif")
    assert photo.bits == 16 and photo.levels == Levels(dtype, black, white)
    assert any(dtype in note for note in photo.notes)
    got = written(photo, ".tif", tmp_path)
    assert got.levels == photo.levels
    np.testing.assert_allclose(
        np.squeeze(got.levels.to_numbers(got.pixels)),
        np.squeeze(numbers),
        atol=(white - black) / 65535,
    )


def test_a_tiff_with_nan_is_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="a.tif.*NaN"):
        files.read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_planes_and_white_as_zero(tmp_path, planar):
    x = pixels("RGB", 16)
    data = np.moveaxis(x, -1, 0) if planar == "separate" else x
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(files.read_photo(tmp_path / "a.tif").pixels, x)
    tifffile.imwrite(tmp_path / "b.tif", 65535 - x[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(files.read_photo(tmp_path / "b.tif").pixels[..., 0], x[..., 0])


# What is read, and how


def test_modes_of_pillow(tmp_path):
    x = pixels("RGB")
    grey = Image.fromarray(x[..., 0])
    cases = {
        "L": (grey, "L"),
        "1": (grey.convert("1"), "L"),
        "P": (Image.fromarray(x).quantize(32), "RGB"),
        "grey P": (grey.quantize(8), "L"),
        "CMYK": (Image.fromarray(x).convert("CMYK"), "RGB"),
    }
    for name, (image, mode) in cases.items():
        image.save(tmp_path / "a.tif")
        assert files.read_photo(tmp_path / "a.tif").mode == mode, name
    grey.save(tmp_path / "key.png", transparency=int(x[0, 0, 0]))
    keyed = files.read_photo(tmp_path / "key.png")
    assert keyed.mode == "LA" and keyed.alpha[0, 0] == 0
    Image.fromarray(x).quantize(16).save(tmp_path / "p.png", transparency=3)
    assert files.read_photo(tmp_path / "p.png").mode == "RGBA"


@pytest.mark.parametrize("suffix", sorted(files.SUFFIXES))
def test_every_suffix_that_can_be_read_is(tmp_path, suffix):
    name, x = files.SUFFIXES[suffix], pixels("RGB")
    Image.fromarray(x if suffix != ".ico" else x[:16, :16]).save(
        tmp_path / f"a{suffix}", {"PSD": "PNG"}.get(name, name)
    )
    photo = files.read_photo(tmp_path / f"a{suffix}")
    assert photo.colors.shape[2] in (1, 3)


def test_frames_and_pages_after_the_first_are_said(tmp_path):
    frames = [Image.fromarray(x) for x in (pixels("RGB"), 255 - pixels("RGB"))]
    for suffix in (".tif", ".gif", ".webp", ".png"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        photo = files.read_photo(tmp_path / f"a{suffix}")
        assert any("first of 2" in note for note in photo.notes), suffix
        assert np.abs(photo.pixels.astype(int) - pixels("RGB")).mean() < 12
        assert files.probe(tmp_path / f"a{suffix}").frames == 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_a_jpeg_may_lack_its_end_but_not_its_half(tmp_path, options):
    x = np.kron(pixels("RGB"), np.ones((4, 4, 1), np.uint8))
    data = io.BytesIO()
    Image.fromarray(x).save(data, "JPEG", quality=92, **options)
    data = data.getvalue()
    whole = files.read_photo(data)
    assert not whole.notes
    for lacks in (1, 2):
        cut = files.read_photo(data[:-lacks])
        assert cut.notes == ("the file lacks its end",)
        assert np.abs(cut.pixels.astype(int) - whole.pixels)[:-16].max() == 0
    for share in (0.3, 0.5, 0.8)[: 2 if options else 3]:
        with pytest.raises(UserError, match="truncated|damaged"):
            files.read_photo(data[: int(share * len(data))])


def test_images_that_pillow_has_loaded_or_turned_to_a_page_are_those(tmp_path):
    pages = [pixels("L", 16)[..., 0], 65535 - pixels("L", 16)[..., 0]]
    tifffile.imwrite(tmp_path / "a.tif", np.stack(pages), photometric="minisblack")
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(1)
        np.testing.assert_array_equal(files.to_photo(image).pixels[..., 0], pages[1])
    tifffile.imwrite(tmp_path / "b.tif", pages[0], photometric="minisblack")
    image = Image.open(tmp_path / "b.tif")
    image.load()  # which closes the file
    np.testing.assert_array_equal(files.to_photo(image).pixels[..., 0], pages[0])


def test_sources_of_every_kind_are_the_same(tmp_path):
    photo = Photo(pixels("RGBA", 16), PROFILES["adobe"]["RGB"])
    files.write_photo(tmp_path / "a.png", photo)
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data)):
        np.testing.assert_array_equal(files.read_photo(source).pixels, photo.pixels)


def test_bombs_and_lying_headers_are_errors(tmp_path):
    png = io.BytesIO()
    Image.fromarray(pixels("RGB")).save(png, "PNG")
    lying = bytearray(png.getvalue())
    lying[16:24] = struct.pack(">II", 2**15, 2**15)
    lying[29:33] = struct.pack(">I", zlib.crc32(lying[12:29]))
    jxl = b"\xff\x0a" + (0 | 3 << 1 | (2**29) << 3 | 1 << 33).to_bytes(16, "little")
    for name, data in {"a.png": bytes(lying), "a.jxl": jxl}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="million pixels"):
            files.read_photo(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".avif", ".jp2"])
def test_damage_is_a_one_line_error(tmp_path, suffix):
    data = io.BytesIO()
    Image.fromarray(pixels("RGB")).save(data, files.SUFFIXES[suffix])
    data, bad = data.getvalue(), tmp_path / f"bad{suffix}"
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in (1, 9, 30, len(data) // 2)]
    for _ in range(30):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 6):
            broken[position] = rng.integers(256)
        damaged.append(bytes(broken))
    errors = 0
    for content in damaged:
        bad.write_bytes(content)
        try:  # Some damage cannot be noticed; what is, must come as a UserError.
            assert files.read_photo(bad).pixels.ndim == 3
        except UserError as error:
            errors += 1
            assert "\n" not in str(error) and str(bad) in str(error)
    assert errors >= 4


# Colours


@pytest.mark.parametrize("kind", ["adobe", "linear"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_go_to_the_networks_and_back_unchanged(kind, mode, bits):
    """Those outside sRGB, too."""
    x = pixels(mode, bits)
    x[:4, :4] = 0
    if mode == "RGB":
        x[4:8, :8, 1] = 2**bits - 1
        x[4:8, :8, ::2] = 0
    photo = Photo(x, PROFILES[kind][mode])
    lr, working = color.to_working(photo)
    assert lr.dtype == np.uint16 and lr.shape == (HEIGHT, WIDTH, 3)
    back = working.to_own(lr, bits).astype(int)
    # Black becomes nearly black: a steep curve begins there.
    assert np.abs(back - x).max() <= (1 if bits == 8 else 300)
    assert np.median(np.abs(back - x)) <= 1


def test_srgb_under_any_name_is_taken_as_it_is():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    x = pixels("RGB")
    lr, working = color.to_working(Photo(x, srgb))
    np.testing.assert_array_equal(lr, x)
    assert working.own is None
    assert not color.is_srgb(PROFILES["linear"]["RGB"], grey=False)


def test_wrong_profiles_are_left_out_and_said(tmp_path):
    Image.fromarray(pixels("RGB")).save(tmp_path / "a.png", icc_profile=b"not a profile")
    photo = files.read_photo(tmp_path / "a.png")
    assert photo.profile is None and any("profile" in note for note in photo.notes)


# Writing


def user_error(call, *args) -> str:
    """The one-line message of the UserError that `call` must raise."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and ";" in message, message
    return message


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path, photo = tmp_path / "new" / "folder" / "a.png", Photo(pixels("RGB"))
    files.write_photo(path, Photo(255 - photo.pixels))
    files.write_photo(str(path), photo)
    np.testing.assert_array_equal(files.read_photo(path).pixels, photo.pixels)
    assert os.listdir(path.parent) == ["a.png"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch):
    path, photo = tmp_path / "a.png", Photo(pixels("RGB"))
    files.write_photo(path, photo)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, full)
    message = user_error(files.write_photo, path, Photo(255 - photo.pixels))
    assert str(path) in message and "free some disk space" in message
    monkeypatch.undo()
    np.testing.assert_array_equal(files.read_photo(path).pixels, photo.pixels)
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_cannot_be_written_is_a_one_line_error(tmp_path):
    photo = Photo(pixels("RGB"))
    assert "cannot write this kind" in user_error(files.write_photo, tmp_path / "a.gif", photo)
    large = Photo(np.zeros((1, 16384, 3), np.uint8))
    assert "16383" in user_error(files.write_photo, tmp_path / "a.webp", large)
    (tmp_path / "file").touch()
    assert "cannot write" in user_error(files.write_photo, tmp_path / "file" / "a.png", photo)
    (tmp_path / "folder.png").mkdir()
    assert "cannot write" in user_error(files.write_photo, tmp_path / "folder.png", photo)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_unreadable_inputs_are_one_line_errors(tmp_path, monkeypatch):
    (tmp_path / "zero.png").touch()
    assert "empty" in user_error(files.read_photo, tmp_path / "zero.png")
    (tmp_path / "text.txt").write_text("hello\nworld")
    assert "not an image" in user_error(files.read_photo, tmp_path / "text.txt")
    assert "No such file" in user_error(files.read_photo, tmp_path / "none.png")
    assert "directory" in user_error(files.read_photo, tmp_path)
    (tmp_path / "a.dng").touch()
    assert "pip install 'dossr-jax[raw]'" in user_error(files.read_photo, tmp_path / "a.dng")


def test_profiles_that_cannot_be_used_are_said(tmp_path):
    """Damaged inside, or made for one direction alone."""
    whole = PROFILES["adobe"]["RGB"]
    cut = whole.replace(b"rTRC", b"xTRC")
    Image.fromarray(pixels("RGB")).save(tmp_path / "a.png", icc_profile=cut)
    photo = files.read_photo(tmp_path / "a.png")
    assert photo.profile is None and any("profile" in note for note in photo.notes)
    assert color.directions(whole, grey=False) == (True, True)
