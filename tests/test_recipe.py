"""The recipe of the model that ships, from a folder of photos to the file, in miniature."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pictures import names_for, picture, save

from dossr_jax import Upscaler

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_recipe_goes_from_photos_to_a_model_that_restores(tmp_path):
    names = names_for("train", 3) + names_for("validation", 1)
    for seed, name in enumerate(names):
        save(tmp_path / "photos" / name, picture(256, 512, seed))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path,
        "PHOTOS": str(tmp_path / "photos"),
        "JAX_NUM_CPU_DEVICES": "1",  # programs for one device compile faster
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # two steps a stage: compiling is most of it
    }
    done = subprocess.run(
        ["sh", "configs/mini_all.sh", str(tmp_path / "runs"), "0.01"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    upscaler = Upscaler.from_pretrained(tmp_path / "runs" / "dossr-mini.safetensors")
    assert upscaler.restore(picture(20, 30)).shape == (80, 120, 3)
