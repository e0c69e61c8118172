"""Laws of restoration: exact sizes, no needless compiles, results of content and seed alone."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import tiny_model
from PIL import Image

from dossr_jax import files, systems
from dossr_jax import restore as restore_module
from dossr_jax.errors import UserError
from dossr_jax.image_io import output_size, resample
from dossr_jax.models.rrdbnet import RRDBNet
from dossr_jax.pipeline import (
    Upscaler,
    blocks,
    limits,
    memory,
    networks,
    queueing,
    restore_photos,
)
from dossr_jax.pipeline import upscaler as upscaler_module
from dossr_jax.pipeline.pictures import as_photo
from dossr_jax.restore import restore

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TILE = 128  # pixels of the fourfold image: tiles of 32 input pixels


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours with some noise, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 3, (3, 3))]
    return np.uint8(
        np.clip(128 + 90 * np.stack(waves, -1) + 8 * rng.normal(size=(height, width, 3)), 0, 255)
    )


def stripes(height: int, width: int) -> np.ndarray:
    """A map that keeps all, half and nothing in turns."""
    return np.broadcast_to(np.arange(width) // 21 % 3 / 2, (height, width))


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(tiny_model(), tile=TILE, devices=jax.devices()[:1])


def assert_same_picture(a: np.ndarray, b: np.ndarray) -> None:
    """At most one level apart, 99.9 % of the values equal: float rounding, nothing else."""
    assert a.shape == b.shape
    difference = np.abs(a.astype(int) - b)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 65), (70, 21)])
@pytest.mark.parametrize("scale", [0.3, 1, 2, 2.5, 4, 8])
def test_size_is_round_of_scale_times_size(upscaler, size, scale):
    result = upscaler.restore(picture(*size), scale=scale, steps=1)
    expected = tuple(max(1, round(scale * side)) for side in size)
    assert result.shape == (*expected, 3) and result.dtype == np.uint8


def test_a_pre_restorer_alone_restores_any_size_tile_by_tile(upscaler):
    """It shares sizes, tiles and batches with the whole model, and refuses what it lacks."""
    rrdb, devices = upscaler.model.rrdb, jax.devices()[:1]
    alone = Upscaler(rrdb, tile=TILE, devices=devices)
    for size in [(1, 1), (33, 65)]:
        image = picture(*size)
        result = alone.restore(image, scale=2.5)
        assert result.shape == (round(2.5 * size[0]), round(2.5 * size[1]), 3)
        np.testing.assert_array_equal(result, alone.restore([image, image], scale=2.5)[1])
    image = picture(32, 32)  # it fills a canvas of both, so that nothing is continued or tiled
    assert_same_picture(alone.restore(image), upscaler.restore(image, diffuse=False))
    assert alone.parameters.keys() == {"rrdb"}
    for wrong, message in (
        ({"steps": 3}, "steps 3: RRDBNet does not read it"),
        ({"diffuse": True}, "diffuse True: RRDBNet does not read it"),
        ({"sampler": "published"}, "sampler published: RRDBNet does not read it"),
        ({"detial": 1}, "detial"),
    ):
        with pytest.raises(UserError, match=message):
            alone.restore(image, **wrong)
    assert alone.settings(sampler=None, seed=None) == alone.settings()


@pytest.mark.parametrize(
    "settings", [{}, {"diffuse": False}, {"scale": 2.5}, {"color_fix": "none"}]
)
def test_grey_in_grey_out(upscaler, settings):
    """Exactly, and of its batch a grey image alone."""
    colored = picture(20, 30)
    checkerboard = np.uint8(np.indices((20, 30)).sum(0) % 2 * 255)[..., None].repeat(3, -1)
    scan = np.repeat(colored[..., :1], 3, -1)
    results = upscaler.restore([checkerboard, colored, scan], steps=1, batch_size=4, **settings)
    spread = [np.ptp(image, axis=-1).max() for image in results]
    assert spread[0] == spread[2] == 0 < spread[1]


def test_settings_and_sizes_within_a_bucket_share_one_program(upscaler):
    restore.clear_cache()  # other tests restore with this model, too
    upscaler.restore(picture(20, 30), steps=2)
    compiled = restore._cache_size()
    for size, settings in {
        (20, 30): {"steps": 7, "order": 1, "solver": "ode"},
        (32, 32): {"seed": 5, "strength": 0.3, "fidelity": 0.5},
        (17, 18): {"scale": 2.5, "start": "noise", "grid": "asinh"},
        (31, 19): {"prompt": "", "negative_prompt": "clean, high-resolution, 8k"},
    }.items():
        upscaler.restore(picture(*size), **settings)
    assert restore._cache_size() == compiled
    upscaler.restore(picture(20, 30), cfg_scale=1.5)
    guided = restore._cache_size()
    upscaler.restore(picture(20, 30), cfg_scale=3.0)
    assert restore._cache_size() == guided == compiled + 1


def test_large_images_of_one_bucket_share_one_program(upscaler):
    upscaler.restore(picture(33, 48), steps=1)
    compiled = restore._cache_size()
    upscaler.restore(picture(40, 41), steps=1)
    upscaler.restore(picture(47, 35, seed=3), steps=3, seed=9)
    assert restore._cache_size() == compiled


@pytest.mark.parametrize("sizes", [[(30, 20), (9, 32), (25, 25)], [(40, 33), (36, 48), (20, 40)]])
def test_neighbours_in_a_batch_change_nothing(upscaler, sizes):
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    together = upscaler.restore(images, batch_size=4, seed=3)
    for image, result in zip(images, together, strict=True):
        assert_same_picture(upscaler.restore(image, seed=3), result)


def test_result_depends_on_the_seed_and_repeats_with_it(upscaler):
    image = picture(24, 24)
    first, again, other = (upscaler.restore(image, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    both = upscaler.restore([image, image], seed=[1, 2], batch_size=2)
    assert_same_picture(both[0], first)
    assert_same_picture(both[1], other)


@pytest.mark.parametrize("mapped", [False, True])
def test_tiles_of_a_pointwise_network_equal_the_whole(mapped, monkeypatch):
    """Where no network looks beyond a position, tiling is exact: nothing is lost or doubled."""
    model, image = pointwise(monkeypatch), picture(60, 75)
    eta_map = stripes(60, 75) if mapped else None
    settings = {"color_fix": "none", "steps": 3, "eta_map": eta_map}
    whole = Upscaler(model, tile=0, devices=jax.devices()[:1]).restore(image, **settings)
    tiled = Upscaler(model, tile=TILE, devices=jax.devices()[:1]).restore(image, **settings)
    restore_module.restore.clear_cache()
    assert whole.std() > 1
    assert_same_picture(whole, tiled)


def _pool(x, f):
    b, h, w, c = x.shape
    z = x.reshape(b, h // f, f, w // f, f, c).mean((2, 4))
    mean = jax.numpy.concatenate([z, z[..., :1]], -1)
    return jax.numpy.concatenate([mean, 0 * mean - 4], -1)


def _spread(z, f):
    return jax.numpy.repeat(jax.numpy.repeat(z, f, 1), f, 2)


def test_settings_do_what_they_say(upscaler):
    image = picture(32, 32)
    settings = {"steps": 4, "color_fix": "none"}
    free = upscaler.restore(image, **settings).astype(int)
    bound = upscaler.restore(image, fidelity=1.0, **settings).astype(int)
    half = upscaler.restore(image, fidelity=0.5, **settings).astype(int)
    assert np.abs(half - bound).mean() < np.abs(free - bound).mean()
    for changed in ({"strength": 0.2}, {"cfg_scale": 4.0}, {"prompt": ""}, {"start": "noise"}):
        assert np.abs(upscaler.restore(image, **settings, **changed) - free).max() > 0, changed


def test_the_residual_fix_takes_the_autoencoders_error_off(upscaler):
    """At fidelity 1 diffusion changes nothing: what comes back is the same without it."""
    settings = {"steps": 1, "final_denoise": True, "fidelity": 1.0}
    for image in (picture(32, 32), picture(TILE + 20, TILE // 2)):
        _, result = next(
            upscaler.stream(
                [(0, image)],
                upscaler.settings(color_fix="residual", **settings),
                stages=True,
            )
        )
        difference = result.image.astype(int) - upscaler.restore(image, diffuse=False)
        assert np.abs(difference).max() <= 1
        assert np.abs(result.decoded.astype(int) - result.pre_restored).max() > 1


def test_another_pre_restorer_takes_the_place_of_the_models(tmp_path, monkeypatch):
    model, other = tiny_model(), tiny_model(seed=1).rrdb
    path, image, devices = tmp_path / "model.safetensors", picture(20, 24), jax.devices()[:1]
    systems.save_model(path, model)
    monkeypatch.setattr(upscaler_module, "make_preprocessor", lambda source, dtype: other)
    replaced = Upscaler.from_pretrained(path, preprocessor="another", devices=devices)
    got = replaced.restore(image, steps=2)
    before = Upscaler(model, devices=devices).restore(image, steps=2)
    assert np.abs(got.astype(int) - before).max() > 10
    model.rrdb = other
    assert_same_picture(Upscaler(model, devices=devices).restore(image, steps=2), got)


def test_guidance_of_scale_one_is_no_guidance(upscaler):
    image = picture(16, 16)
    plain = upscaler.restore(image)
    assert_same_picture(upscaler.restore(image, cfg_scale=1.0 + 1e-7), plain)


def test_every_image_needs_a_seed(upscaler):
    with pytest.raises(UserError, match="1 seeds for more images"):
        upscaler.restore([picture(8, 8)] * 2, seed=[3])


def test_a_free_prompt_needs_a_text_encoder(upscaler):
    with pytest.raises(UserError, match="carries no text encoder"):
        upscaler.restore(picture(8, 8), prompt="a cat")


def test_pictures_come_back_in_the_form_they_were_given(upscaler, tmp_path):
    image = picture(12, 14)
    wanted = upscaler.restore(image)
    forms = {
        "grey": image[..., 0],
        "grey with an axis": image[..., :1],
        "grey and alpha": image[..., :2],
        "alpha": np.dstack([image, image[..., 0]]),
        "16 bits": image.astype(np.uint16) * 257,
        "floats": (image / 255).astype(np.float32),
        "bfloat16": jnp.asarray(image / 255, jnp.bfloat16),
    }
    for name, form in forms.items():
        result = upscaler.restore(form)
        assert isinstance(result, np.ndarray), name
        assert result.shape == (48, 56, *form.shape[2:]) and result.dtype == form.dtype, name
    floats = upscaler.restore(forms["floats"])
    assert 0 <= floats.min() and floats.max() <= 1
    assert np.abs(255 * floats - wanted).mean() < 1
    pillow = Image.fromarray(image)
    pillow.save(tmp_path / "a.png", dpi=(300, 300))
    for mode in ("L", "LA", "RGB", "RGBA"):
        result = upscaler.restore(pillow.convert(mode))
        assert isinstance(result, Image.Image) and (result.mode, result.size) == (mode, (56, 48))
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data)):
        np.testing.assert_array_equal(upscaler.restore(source), wanted)
    assert upscaler.restore(Image.open(tmp_path / "a.png")).info["dpi"] == pytest.approx(
        (300, 300), 1e-3
    )
    assert [x.shape for x in upscaler.restore([image, image[..., 0]])] == [(48, 56, 3), (48, 56)]


def test_what_is_no_picture_is_an_error():
    data = io.BytesIO()
    Image.fromarray(picture(9, 9)).save(data, "PNG")
    cut = Image.open(io.BytesIO(data.getvalue()[:100]))
    for bad, message in (
        (np.zeros((4, 4, 3), int), "int64"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.zeros((4, 4, 5), np.uint8), "shape"),
        (picture(4, 4).astype(np.float32), "0 to 255"),
        (cut, "damaged"),
        (b"text", "not an image"),
    ):
        with pytest.raises(UserError, match=message) as error:
            as_photo(bad)
        assert "\n" not in str(error.value)


def test_a_ramp_of_16_bits_stays_one(upscaler):
    ramp = np.broadcast_to(np.linspace(0, 65535, 600), (8, 600)).round().astype(np.uint16)
    result = upscaler.restore(ramp, steps=1)
    assert (np.diff(result.astype(int), axis=1) >= 0).all()
    assert len(np.unique(result)) > 2300


def test_transparency_leaves_no_fringe(upscaler):
    """What a file stores where nothing is visible has no influence; full and empty stay so."""
    image = picture(30, 32)
    y, x = np.mgrid[:30, :32]
    alpha = np.clip(400 - 30 * np.hypot(y - 15, x - 15), 0, 255).astype(np.uint8)
    black, white = (
        upscaler.restore(np.dstack([np.where(alpha[..., None] > 0, image, level), alpha]), steps=1)
        for level in (0, 255)
    )
    np.testing.assert_array_equal(black, white)
    large = alpha.repeat(4, 0).repeat(4, 1)
    assert (black[..., 3][large == 0] < 80).all()
    assert (black[:8, :8, 3] == 0).all() and (black[58:66, 58:66, 3] == 255).all()
    opaque = np.dstack([image, np.full((30, 32), 255, np.uint8)])
    np.testing.assert_array_equal(upscaler.restore(opaque)[..., :3], upscaler.restore(image))


def test_a_photo_keeps_its_colour_space_and_what_belongs_to_it(upscaler):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    data = io.BytesIO()
    image = Image.fromarray(np.uint8(picture(24, 40) * 0.5 + 60))
    image.save(data, "JPEG", exif=exif, icc_profile=imagecodecs.cms_profile("adobergb"), quality=95)
    photo = files.read_photo(data.getvalue())
    settings = upscaler.settings(steps=1, scale=2.0)
    ((name, result),) = restore_photos(upscaler, [("a", photo)], settings, stages=True)
    assert name == "a" and (result.photo.height, result.photo.width) == (80, 48)
    assert (result.photo.profile, result.photo.bits) == (photo.profile, 8)
    stage = result.pre_restored
    assert (stage.height, stage.width, stage.profile) == (160, 96, photo.profile)
    found = Image.Exif()
    found.load(b"Exif\0\0" + result.photo.metadata.exif)
    assert (found[0x010F], found[0x0112]) == ("Maker", 1)
    before, after = (p.pixels[: s * 32, : s * 16] for p, s in ((photo, 1), (result.photo, 2)))
    means = [x.reshape(2, len(x) // 2, -1, 3).mean((1, 2)) for x in (before, after)]
    # Means stay in sRGB; this model's strong texture moves those of another tone curve a little.
    np.testing.assert_allclose(*means, atol=2.5)


def test_a_result_with_nan_is_an_error_and_stops_no_other(monkeypatch):
    model = tiny_model()
    # The model fails on bright images alone.
    monkeypatch.setattr(
        type(model),
        "pre_restore",
        lambda self, lr: jnp.where(
            lr.mean((1, 2, 3), keepdims=True) > 0.9, jnp.nan, _spread(lr, 4)
        ),
    )
    restore.clear_cache()
    made = Upscaler(model, tile=TILE, devices=jax.devices()[:1])
    images = {"dark": picture(20, 20), "bright": np.full((20, 20, 3), 255, np.uint8)}
    results = dict(made.stream(images.items(), made.settings(steps=1, batch_size=2)))
    restore.clear_cache()
    assert "NaN" in str(results["bright"]) and isinstance(results["bright"], UserError)
    assert not isinstance(results["dark"], UserError)


@pytest.mark.parametrize("scale", [1, 2.5, 4, 7])
@pytest.mark.parametrize("size", [(300, 129), (128, 500), (33, 40)])
def test_blocks_cover_a_photo_without_gap_or_seam(size, scale):
    image = picture(*size)
    large = resample(image.astype(np.float32), *output_size(*size, 4))
    result = np.full((*output_size(*size, scale), 3), 255, np.uint8)
    parts = blocks.blocks_of(*size, 4 * 192, 4)
    assert (len(parts) > 1) == (max(size) > 192)
    assert sum(part.owned[0] * part.owned[1] for part in parts) == size[0] * size[1]
    assert len(parts) == 1 or max(max(part.height, part.width) for part in parts) <= 144
    for part in parts:
        fourfold = large[4 * part.row :, 4 * part.column :][: 4 * part.height, : 4 * part.width]
        blocks.paste(result, np.uint8(np.clip(fourfold.round(), 0, 255)), part, size)
    wanted = resample(np.uint8(np.clip(large.round(), 0, 255)), *result.shape[:2])
    assert np.abs(result.astype(int) - wanted).max() <= 2


@pytest.fixture
def in_blocks(upscaler, monkeypatch):
    """The same model, which restores images of more than 160 pixels per side in blocks."""
    made = Upscaler(upscaler.model, tile=TILE, devices=jax.devices()[:1])
    made._networks.limits = dataclasses.replace(made._networks.limits, side=4 * 160)
    return made


def test_a_photo_in_blocks_is_as_if_restored_at_once(upscaler, in_blocks):
    image = picture(100, 200)
    # Diffusion of this random model looks at whole tiles, and blocks have other tiles.
    settings = {"diffuse": False}
    at_once = upscaler.restore(image, **settings).astype(int)
    assert np.abs(in_blocks.restore(image, **settings) - at_once).mean() < 1
    grey = np.repeat(image[..., :1], 3, -1)
    assert np.ptp(in_blocks.restore(grey, **settings), axis=-1).max() == 0
    ((_, result),) = in_blocks.stream([(0, image)], upscaler.settings(**settings), stages=True)
    assert result.pre_restored is None


def pointwise(monkeypatch):
    """A model none of whose networks looks beyond a position."""
    model = tiny_model()
    monkeypatch.setattr(type(model), "encode", lambda self, x: (_pool(x, 8), _pool(x, 8)))
    monkeypatch.setattr(type(model), "decode", lambda self, z: _spread(z[..., :3], 8))
    monkeypatch.setattr(type(model), "pre_restore", lambda self, lr: _spread(lr, 4))
    monkeypatch.setattr(
        type(model), "for_steps", lambda *_: lambda x, row, hint, strength: 0.3 * x + hint
    )
    restore_module.restore.clear_cache()
    return model


@pytest.mark.parametrize(
    ("fix", "mapped"),
    [
        ("none", False),
        ("none", True),
        pytest.param("adain", False, marks=pytest.mark.slow),
        pytest.param("adain", True, marks=pytest.mark.slow),
    ],
)
def test_blocks_have_the_noise_and_the_moments_of_the_whole_photo(fix, mapped, monkeypatch):
    """So that of networks that look at a position alone they give the same, to a level."""
    model, image = pointwise(monkeypatch), picture(100, 200)
    eta_map = stripes(100, 200) if mapped else None
    whole, parts = (Upscaler(model, tile=TILE, devices=jax.devices()[:1]) for _ in range(2))
    parts._networks.limits = dataclasses.replace(parts._networks.limits, side=4 * 160)
    wanted, got = (
        made.restore(image, eta_map=eta_map, color_fix=fix, steps=2) for made in (whole, parts)
    )
    restore_module.restore.clear_cache()
    assert len(parts._networks._known) == (1 if fix == "none" else 2)
    difference = np.abs(got.astype(int) - wanted)
    # Where areas cannot have their mean colours at once, what is beyond a block's edge counts.
    assert difference.mean() < 0.2 and (difference <= 1).mean() > 0.99


@pytest.mark.parametrize("settings", [{"scale": 40.0}, {}])
def test_an_image_too_large_stops_no_other(upscaler, settings, monkeypatch):
    needed = 6 * 33 * 30 * settings.get("scale", 4) ** 2
    monkeypatch.setattr(memory, "free_memory", lambda: int(needed))
    monkeypatch.setattr(memory, "usable_memory", lambda device: None)
    images = {"small": picture(8, 8), "large": picture(33, 31), "other": picture(3, 3)}
    results = dict(upscaler.stream(images.items(), upscaler.settings(steps=1, **settings)))
    assert set(results) == set(images)
    assert isinstance(results["large"], UserError) and "33" in str(results["large"])
    assert {n for n, r in results.items() if isinstance(r, UserError)} == {"large"}
    with pytest.raises(UserError, match="cut the image"):
        upscaler.restore(images["large"], **settings)


class Device:
    """A device with memory for so many pixels of images, of tiles, and of tiles that are run.

    It stands for `restore`: `says` tells beforehand what a program needs; else running it fails.
    """

    ERRORS = (
        "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        "UNKNOWN: Failed to determine best cudnn convolution algorithm for: ...",
    )

    def __init__(self, canvases, tiles=float("inf"), says=False, error=ERRORS[0]):
        self.most, self.says, self.error = (canvases, tiles), says, error
        self.ran = []

    def needed(self, layout, lr):
        places, height, width, _ = lr.shape
        tiles = layout.tile_batch * (layout.tile * layout.unit) ** 2 if layout.tile else 0
        return 16 * places * height * width, tiles

    def lower(self, graphdef, layout, state, lr, *rest):
        needed = self.needed(layout, lr) if self.says else (0, 0)
        share = max(n / most for n, most in zip(needed, self.most, strict=True))
        sizes = dict(temp_size_in_bytes=int(1000 * share), output_size_in_bytes=0)
        program = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))
        return SimpleNamespace(compile=lambda: program)

    def __call__(self, graphdef, layout, state, lr, *rest):
        needed = self.needed(layout, lr)
        if any(n > most for n, most in zip(needed, self.most, strict=True)):
            assert not self.says
            raise jax.errors.JaxRuntimeError(self.error)
        self.ran.append(needed)
        return restore(graphdef, layout, state, lr, *rest)


def outcomes(made, images, **settings):
    """Results of the pre-restorer (quick to compile) in the order of images, and all notes."""
    sizes = [image.shape[:2] for image in images]
    chosen = made.settings(diffuse=False, **settings)
    results = dict(made.stream(enumerate(images), chosen, sizes=sizes))
    ordered = [results[i] for i in range(len(images))]
    notes = [n for r in ordered if not isinstance(r, UserError) for n in r.notes]
    return ordered, notes


@pytest.mark.parametrize("error", [None, *Device.ERRORS])
def test_where_memory_is_short_batches_are_halved_and_pixels_stay(upscaler, monkeypatch, error):
    images = [picture(20 + i, 32, seed=i) for i in range(5)]
    wanted, notes = outcomes(upscaler, images, batch_size=2)
    assert notes == []
    device = Device(2 * 128**2, says=error is None, error=error or "")
    monkeypatch.setattr(networks, "restore", device)
    monkeypatch.setattr(memory, "usable_memory", lambda device: 1000.0)
    made = Upscaler(upscaler.model, tile=TILE, devices=jax.devices()[:1])
    got, notes = outcomes(made, images, batch_size=8)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
    assert notes[-1] == "memory is short: from here on 2 images at a time"
    assert len(notes) == (1 if error is None else 2)  # told beforehand, or halved until it fits
    assert {needed[0] for needed in device.ran} == {2 * 128**2}
    _, notes = outcomes(made, images, batch_size=8)
    assert notes == []  # it is said once


def test_where_memory_is_short_tiles_of_a_picture_run_one_by_one(upscaler, monkeypatch):
    image = picture(40, 60)
    (wanted,), _ = outcomes(upscaler, [image], batch_size=1)
    device = Device(float("inf"), 128**2)
    monkeypatch.setattr(networks, "restore", device)
    made = Upscaler(upscaler.model, tile=TILE, devices=jax.devices()[:1])
    (got,), notes = outcomes(made, [image], batch_size=4)
    np.testing.assert_array_equal(wanted.image, got.image)
    assert notes[-1].endswith("1 tile at a time")


def test_then_blocks_get_smaller_then_tiles(upscaler, in_blocks, monkeypatch):
    """As if they had been so from the beginning."""
    devices = jax.devices()[:1]
    large, small = picture(100, 200), picture(20, 24)
    (wanted,), _ = outcomes(in_blocks, [large], batch_size=1)
    monkeypatch.setattr(limits, "LEAST_SIDE", 4 * 160)
    monkeypatch.setattr(networks, "restore", Device(16 * 144**2))
    made = Upscaler(upscaler.model, tile=TILE, devices=devices)
    (got,), notes = outcomes(made, [large], batch_size=1)
    np.testing.assert_array_equal(wanted.image, got.image)
    assert notes == ["memory is short: from here on large images in blocks of 160 pixels"]

    monkeypatch.setattr(networks, "restore", restore)
    (wanted,), _ = outcomes(Upscaler(upscaler.model, tile=64, devices=devices), [small])
    # Whole canvases have no tiles: what does not fit is the canvas.
    monkeypatch.setattr(networks, "restore", WithoutWhole(64))
    (got,), notes = outcomes(Upscaler(upscaler.model, tile=TILE, devices=devices), [small])
    np.testing.assert_array_equal(wanted.image, got.image)
    assert len(notes) == 1 and "tiles of 64 pixels, which changes results" in notes[0]


class WithoutWhole(Device):
    """Has memory for tiles of a side, however many."""

    def __init__(self, side):
        super().__init__(float("inf"), float("inf"))
        self.side = side

    def __call__(self, graphdef, layout, state, lr, *rest):
        side = layout.tile * layout.unit if layout.tile else 4 * lr.shape[1]
        if side > self.side:
            raise jax.errors.JaxRuntimeError(self.error)
        return restore(graphdef, layout, state, lr, *rest)


def test_what_no_reduction_helps_is_an_error_of_each_image(upscaler, monkeypatch):
    monkeypatch.setattr(networks, "restore", Device(1))
    made = Upscaler(upscaler.model, tile=TILE, devices=jax.devices()[:1])
    results, _ = outcomes(made, [picture(8, 9), picture(9, 8), picture(40, 70)], batch_size=2)
    assert ["9x8" in str(results[0]), "8x9" in str(results[1])] == [True, True]
    assert all("out of memory" in str(error) for error in results)


def test_other_errors_are_not_taken_for_a_lack_of_memory(upscaler, monkeypatch):
    monkeypatch.setattr(networks, "restore", Device(1, error="INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        outcomes(Upscaler(upscaler.model, tile=TILE, devices=jax.devices()[:1]), [picture(8, 8)])


def test_the_next_batch_is_read_while_one_runs(upscaler):
    """And results of one come when the next is on the device."""
    read = []

    def images():
        for i in range(4):
            read.append(i)
            yield i, picture(20, 20, seed=i)

    results = upscaler.stream(images(), upscaler.settings(diffuse=False, batch_size=1))
    assert [(next(results)[0], len(read)) for _ in range(4)] == [(0, 2), (1, 3), (2, 4), (3, 4)]


def test_what_waits_for_a_batch_takes_little_memory(upscaler, monkeypatch):
    image = picture(20, 20)
    monkeypatch.setattr(queueing, "_MOST_WAITING", 3 * image.nbytes)
    read = []

    def images():
        for i in range(10):
            read.append(i)
            yield i, image

    results = upscaler.stream(images(), upscaler.settings(diffuse=False, batch_size=100))
    next(results)
    assert len(read) <= 8


def test_a_known_album_needs_a_program_for_each_class(upscaler):
    """Batches are full, and the last is filled up."""
    restore.clear_cache()
    images = [picture(20 + i, 30, seed=i) for i in range(5)] + [picture(40, 50), picture(60, 90)]
    outcomes(upscaler, images, batch_size=4)
    assert restore._cache_size() == 2
    outcomes(upscaler, images[:2], batch_size=4)  # without them, a power of two
    assert restore._cache_size() == 3


@pytest.mark.parametrize(("scale", "size"), [(1, (33, 20)), (2, (5, 7))])
def test_pre_restorers_of_smaller_scale_fold_pixels_and_enlarge(scale, size):
    """In tiles and whole."""
    model = tiny_model()
    config = dataclasses.replace(model.config.rrdb, scale=scale)
    model.rrdb = RRDBNet(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    model.config = dataclasses.replace(model.config, rrdb=config)
    made = Upscaler(model, tile=TILE, devices=jax.devices()[:1])
    assert made.restore(picture(*size), steps=1).shape == (4 * size[0], 4 * size[1], 3)


_FOUR_DEVICES = """
import jax, numpy as np, sys
sys.path.insert(0, {tests!r})
from helpers.models import tiny_model
from test_pipeline import TILE, picture, assert_same_picture
from dossr_jax.pipeline import Upscaler, restore_photos
assert len(jax.devices()) == 4
model = tiny_model()
one = Upscaler(model, tile=TILE, devices=jax.devices()[:1])
four = Upscaler(model, tile=TILE)
size = 40, 60
image = picture(*size)
alone = one.restore(image, seed=7)
assert_same_picture(alone, four.restore(image, seed=7))
batch = [picture(*size, seed=i) for i in range(3)]
assert_same_picture(alone, four.restore([*batch, image], seed=7, batch_size=4)[-1])
print("same")
"""


def test_the_number_of_devices_changes_nothing():
    """In tiles; test_mini.py does the same with the model that ships, on whole canvases, too."""
    tests = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES.format(tests=str(tests))],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("same"), run.stderr[-2000:]
