"""Degradation, the bank of crops and the batches drawn from it."""

import json

import numpy as np
import pytest
from PIL import Image

from dossr_jax.data import bank as bank_lib
from dossr_jax.data.batches import Bank, Latents
from dossr_jax.data.degradation import PRESETS, degrade
from dossr_jax.errors import UserError


def photo(height, width, seed=0):
    """A smooth random photo with some texture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int32)
    return np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory):
    """A bank of two training photos, one held out, one too small and one broken."""
    root = tmp_path_factory.mktemp("bank")
    (root / "photos" / "sub").mkdir(parents=True)
    names = (f"photo{i}.png" for i in range(1000))
    split = {"train": [], "validation": []}
    for name in names:
        split[bank_lib.split_of(name)].append(name)
    for i, name in enumerate(split["train"][:2] + split["validation"][:1]):
        Image.fromarray(photo(300, 520, i)).save(root / "photos" / "sub" / name)
    Image.fromarray(photo(100, 100)).save(root / "photos" / split["train"][2])
    (root / "photos" / split["train"][3]).write_bytes(b"no image")
    counts = bank_lib.build(
        root / "photos",
        root / "out",
        presets=["realesrgan", "light"],
        stride=256,
        seed=0,
        workers=1,
    )
    assert counts == {"train": 4, "validation": 2}
    return root / "out"


@pytest.mark.parametrize("preset", PRESETS)
def test_degrade_is_a_function_of_the_generator(preset):
    hr = photo(64, 96)
    first, again, other = (degrade(np.random.default_rng(s), hr, preset) for s in (1, 1, 2))
    assert first.shape == (16, 24, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_degrade_keeps_place_and_brightness(preset):
    """No shift, no colour cast: on average an LR image is close to the area-averaged HR image."""
    hr = photo(64, 64)
    area = hr.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    draws = [degrade(np.random.default_rng(s), hr, preset) for s in range(60)]
    error = np.mean(draws, axis=0) - area
    assert abs(error.mean()) < 4
    # A flipped or shifted copy would be much further off.
    assert np.abs(error).mean() < 0.5 * np.abs(error + area - area[:, ::-1]).mean()


def test_realesrgan_is_harsher_than_light():
    hr = photo(128, 128)
    area = hr.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    error = {
        preset: np.mean(
            [np.abs(degrade(np.random.default_rng(s), hr, preset) - area).mean() for s in range(20)]
        )
        for preset in PRESETS
    }
    assert error["realesrgan"] > 1.5 * error["light"]


def test_bank_skips_what_it_cannot_use(bank_folder):
    about = json.loads((bank_folder / "bank.json").read_text())
    assert about["photos"] == 5 and len(about["photos without a crop"]) == 2


def test_bank_batches_pair_lr_with_hr(bank_folder):
    bank = Bank(bank_folder, "train")
    assert len(bank) == 4
    batch = bank.batch(np.random.default_rng(0), 32, 6)
    assert batch["lr"].shape == (6, 32, 32, 3) and batch["hr"].shape == (6, 128, 128, 3)
    # Every LR window looks most like its own HR window, so place, flip and turn agree.
    area = batch["hr"].reshape(6, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    gap = np.abs(batch["lr"][:, None].astype(float) - area[None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(gap.argmin(axis=1), np.arange(6))


def test_batches_depend_on_the_generator_alone(bank_folder):
    latents = Latents(*np.random.default_rng(0).standard_normal((2, 3, 8, 8, 4), np.float32))
    for source, size in ((Bank(bank_folder, "validation"), 16), (latents, 4)):
        one, two = (source.batch(np.random.default_rng(5), size, 2) for _ in range(2))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_missing_bank_and_photos_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="dossr_jax.data.bank"):
        Bank(tmp_path, "train")
    with pytest.raises(UserError, match="no photos"):
        bank_lib.list_photos(tmp_path)
