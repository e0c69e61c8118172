"""docs/afternoon.md: its commands, line by line, make a model that restores.

Photos, networks and numbers of steps are small, features are random, and of the degradations only
the one that compiles fast is there; stages, files and flags are those of the page.
"""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from helpers.models import randomised
from helpers.pictures import names_for, picture, save
from helpers.runs import write_model
from helpers.small import SMALL

from dossr_jax import cli
from dossr_jax.data import prepare
from dossr_jax.evaluate import __main__ as evaluate
from dossr_jax.models.efficientnet import EfficientNetLite0
from dossr_jax.pipeline import Upscaler
from dossr_jax.training import cli as training
from dossr_jax.training import experiments
from dossr_jax.training.stages import adversarial

PAGE = Path(__file__).parent.parent / "docs" / "afternoon.md"
PROGRAMS = {
    "python -m dossr_jax.data.prepare": prepare.main,
    "python train.py": training.main,
    "python infer.py": cli.main,
    "python -m dossr_jax.evaluate": evaluate.main,
}
SHIPPED = "dossr_jax/assets/dossr-mini.safetensors"
SMALLER = {"--steps": "1", "--limit": "2", "--preset": "bicubic"}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]


def commands():
    """(program, its arguments) of every line that is ours."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("pip "):
                continue
            (program,) = (name for name in PROGRAMS if line.startswith(name + " "))
            yield PROGRAMS[program], shlex.split(line.removeprefix(program))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout in small: photos, the model that ships, and configurations of its size."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(names_for("train", 1) + names_for("validation", 1)):
        save(tmp_path / "photos" / name, picture(256, 256, seed))
    save(tmp_path / "held_out" / "a.png", picture(192, 192))
    save(tmp_path / "examples" / "a.png", picture(12, 16))
    (tmp_path / SHIPPED).parent.mkdir(parents=True)
    write_model(tmp_path / SHIPPED, SMALL)
    features = randomised(lambda rngs: EfficientNetLite0(rngs=rngs))
    monkeypatch.setattr(adversarial, "feature_network", lambda: features)
    load = experiments.load_config

    def load_smaller(name, changes=None):
        config = load(name, changes)
        data = dataclasses.replace(config.data, crop=32, batch=1, workers=0, presets=("bicubic",))
        stage = dataclasses.replace(config.stage, discriminator_features=8)
        small = {"model": SMALL, "data": data, "stage": stage, "validate_every": 0}
        return dataclasses.replace(config, **small)

    monkeypatch.setattr(experiments, "load_config", load_smaller)
    return tmp_path


def test_the_afternoon_ends_with_a_model_that_restores(folder):
    for program, words in commands():
        given = zip([""] + words, words, strict=False)
        words = [SMALLER.get(flag, word) for flag, word in given]
        words = [SHIPPED if word == "dossr-mini" else word for word in words]
        words = [word for word in words if word not in ("realesrgan", "light")]
        assert program(words) == 0, words
    assert Upscaler.from_pretrained("runs/mine.safetensors").config.sampler.fidelity == 0.8
    assert (folder / "runs/restored/a.png").exists()
    assert (folder / "runs/judged/evaluation.html").exists()
