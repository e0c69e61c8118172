"""A stage of one's own: one file, and no other module of the package changes."""

import dataclasses

import numpy as np
from helpers.distributed_worker import ROOT
from helpers.runs import write_pairs

from dossr_jax import systems
from dossr_jax.config import StageConfig, from_json, to_json
from dossr_jax.config.train import TrainConfig
from dossr_jax.training.cli import main

# The file of docs/training.md, "Add a stage of your own"; a configuration goes below it.
STAGE = '''
from typing import Annotated, Literal

import jax.numpy as jnp
from pydantic import Field

from dossr_jax.config import configuration
from dossr_jax.training.stages.base import Stage, mean_of, pre_restore_crops, psnr


@configuration
class CharbonnierStage(Stage):
    """The pre-restorer by a smooth L1 loss; `width`: below it errors count by their square."""

    name: Literal["charbonnier"] = "charbonnier"
    width: Annotated[float, Field(gt=0)] = 1e-3

    def learns(self, name):
        return name.startswith("rrdb.")

    def loss(self, model, inputs, t):
        out = pre_restore_crops(model, inputs).astype(jnp.float32)
        loss = mean_of(jnp.sqrt((inputs.hr - out) ** 2 + self.width**2))
        return loss, {"psnr": psnr(out, inputs.hr)}

    def show(self, model, inputs, t):
        return inputs.lr, pre_restore_crops(model, inputs)
'''
CONFIG = """
import dataclasses

from helpers.small import make_config

small = make_config("rrdb", steps=2, validate_every=1)
data = dataclasses.replace(small.data, workers=0)
CONFIG = dataclasses.replace(small, stage=CharbonnierStage(width=0.01), data=data)
"""


def test_the_documentation_shows_this_stage():
    assert STAGE.strip() in (ROOT / "docs" / "training.md").read_text()


def test_a_file_of_ones_own_trains_resumes_and_refuses_what_it_does_not_read(tmp_path, capsys):
    file = tmp_path / "charbonnier.py"
    file.write_text(STAGE + CONFIG)
    pairs = write_pairs(tmp_path / "pairs")
    command = ["--config", file, "--data", pairs, "--output", tmp_path / "run"]
    assert main([*map(str, command)]) == 0
    assert main([*map(str, command), "--steps", "3"]) == 0
    _, tensors = systems.open_model(tmp_path / "run" / "model.safetensors")
    assert np.isfinite(tensors["rrdb.conv_first.kernel"].load()).all()
    assert "resumed at step 2, stage charbonnier" in capsys.readouterr().err
    assert main([*map(str, command), "--steps", "3", "--stage.width", "0.1"]) == 2
    assert "stage.width is 0.01 there, 0.1 now" in capsys.readouterr().err
    for change in ("stage.kl_weight=1", "stage.width=-1"):
        assert main([*map(str, command), f"--{change}"]) == 2
        assert change.split("=")[0] in capsys.readouterr().err
    run = TrainConfig(stage=StageConfig.known["charbonnier"](width=0.5))
    assert from_json(TrainConfig, to_json(run)) == run
    assert dataclasses.replace(run, seed=1).stage.width == 0.5
