"""What every system promises: exact sizes, batches and devices that change nothing, tiles."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.systems import small_config, small_model
from test_pipeline import TILE, assert_same_picture, picture

from dossr_jax.config import ConfigError, SamplerConfig, to_json
from dossr_jax.config.model import read_model_config
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Settings, Upscaler
from dossr_jax.systems import COMMON_SETTINGS, SYSTEMS, save_model

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# DoSSR itself has tests/test_pipeline.py.
NAMES = [system.name for system in SYSTEMS if system.name not in ("dossr", "rrdb")]
SYSTEM = {system.name: system for system in SYSTEMS}


@pytest.fixture(scope="module", params=NAMES)
def upscaler(request) -> Upscaler:
    return Upscaler(small_model(request.param), tile=TILE, devices=jax.devices()[:1])


def test_sizes_batches_and_tiles(upscaler):
    """Every canvas is compiled once for one image and once for four."""
    small = [picture(*size, seed=i) for i, size in enumerate([(1, 1), (30, 20), (9, 32), (25, 25)])]
    for scale in (1, 2.5, 4):
        for image in small[:2]:
            expected = tuple(max(1, round(scale * side)) for side in image.shape[:2])
            assert upscaler.restore(image, scale=scale).shape == (*expected, 3)
    together = upscaler.restore(small, batch_size=4)
    for image, result in zip(small, together, strict=True):
        assert_same_picture(upscaler.restore(image), result)
    tiled = picture(*(TILE // upscaler.geometry.factor * side + 1 for side in (1, 2)))
    alone = upscaler.restore(tiled)
    factor = upscaler.geometry.factor
    assert alone.shape == (TILE + factor, 2 * TILE + factor, 3) and alone.std() > 1
    assert_same_picture(alone, upscaler.restore([tiled, tiled], batch_size=2)[1])


def test_an_image_without_colour_stays_so(upscaler):
    grey = np.repeat(picture(20, 30)[..., :1], 3, axis=2)
    result = upscaler.restore(grey)
    assert (result == result[..., :1]).all()


def test_settings_that_a_system_does_not_read_are_refused_by_name(upscaler):
    values = {
        "seed": 3,
        "prompt": "x",
        "negative_prompt": "x",
        "strength": 0.5,
        "pixel_scale": 0.5,
        "semantic_scale": 0.5,
        "diffuse": True,
    }
    values |= {name: getattr(SamplerConfig(), name) for name in _names(SamplerConfig)}
    read = COMMON_SETTINGS | upscaler.system.settings
    assert read <= values.keys() | COMMON_SETTINGS
    for name, value in values.items():
        if name in read:
            upscaler.settings(**{name: value})
        else:
            with pytest.raises(ConfigError, match=f"{name} .*{upscaler.system.title} does not"):
                upscaler.settings(**{name: value})


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def test_every_setting_is_read_by_some_system():
    read = COMMON_SETTINGS.union(*(system.settings for system in SYSTEMS))
    assert read == {*_names(Settings), *_names(SamplerConfig)} - {"sampler"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_is_the_model(name, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, small_model(name))
    loaded = Upscaler.from_pretrained(path)
    assert loaded.config == small_config(name)
    assert read_model_config(to_json(loaded.config)) == loaded.config
    assert loaded.system is SYSTEM[name]
    if loaded.system.pre_restorer is None:
        with pytest.raises(UserError, match=f"{loaded.system.title} has no pre-restorer"):
            Upscaler.from_pretrained(path, preprocessor="realesrgan-anime")


_FOUR_DEVICES = """
import jax, sys
sys.path.insert(0, {tests!r})
from helpers.systems import small_model
from test_pipeline import TILE, picture, assert_same_picture
from dossr_jax.pipeline import Upscaler
assert len(jax.devices()) == 4
for name in {names!r}:
    model = small_model(name)
    one = Upscaler(model, tile=TILE, devices=jax.devices()[:1])
    four = Upscaler(model, tile=TILE)
    images = [picture(33, 65), picture(30, 20)]
    for a, b in zip(one.restore(images), four.restore(images), strict=True):
        assert_same_picture(a, b)
print("same")
"""


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing():
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES.format(tests=str(tests), names=NAMES)],
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
