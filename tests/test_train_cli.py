"""train.py: from the command line to a model file."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import write_model, write_pairs
from helpers.small import SMALL, make_config

import train
from configs import CONFIGS
from dossr_jax import weights
from dossr_jax.config import DataConfig
from dossr_jax.convert.__main__ import main as convert
from dossr_jax.convert.readers import read_checkpoint
from dossr_jax.pipeline import Upscaler

# Files and arguments are what counts here; test_training.py has the numbers.
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("init") / "init.safetensors", SMALL)


@pytest.fixture
def command(pairs, init, tmp_path, monkeypatch):
    """Function (*arguments) -> exit status of train.py with a small configuration "small"."""
    config = make_config(
        "rrdb",
        data=DataConfig(crop=16, batch=4, workers=0),
        steps=2,
        save_every=2,
        validate_every=0,
    )
    monkeypatch.setitem(train.CONFIGS, "small", config)
    fixed = ["--config", "small", "--data", pairs, "--output", tmp_path / "run", "--init", init]
    return lambda *arguments: train.main([str(a) for a in [*fixed, *arguments]])


def arrays(path):
    file = weights.SafetensorsFile(path)
    return {name: file.read(name) for name in file.names}


def test_trains_and_writes_models_that_restore(command, init, tmp_path, capsys):
    exported = tmp_path / "e.safetensors"
    assert command("--export", exported) == 0
    model, first = arrays(tmp_path / "run" / "model.safetensors"), arrays(init)
    assert {a.dtype for a in model.values()} == {np.dtype(np.float32)}
    changed = {name for name in model if (model[name] != first[name]).any()}
    assert changed and all(name.startswith("rrdb.") for name in changed)
    small = arrays(exported)
    assert {str(a.dtype) for a in small.values()} == {"bfloat16"}
    for name, value in model.items():
        np.testing.assert_array_equal(small[name], value.astype(jnp.bfloat16))
    image = np.zeros((8, 6, 3), np.uint8)
    assert Upscaler.from_pretrained(exported).restore(image).shape == (32, 24, 3)
    # The same command finds all done and writes the same.
    capsys.readouterr()
    assert command("--export", exported, "--export-dtype", "float32") == 0
    assert f"wrote {exported}" in capsys.readouterr().out
    for name, value in arrays(exported).items():
        np.testing.assert_array_equal(value, model[name])


def test_the_model_is_the_average(command, tmp_path):
    """With a decay of 0 in its place there is none, and the last weights go out."""
    assert command() == 0
    assert command("--set", "optimizer.ema_decay=0.0", "--output", tmp_path / "last") == 0
    average, last = (arrays(tmp_path / d / "model.safetensors") for d in ("run", "last"))
    name = "rrdb.conv_first.kernel"
    assert (average[name] != last[name]).any()
    np.testing.assert_allclose(average[name], last[name], atol=0.01)


def test_an_autoencoder_learns_the_scale_of_its_latents(command, tmp_path):
    assert command("--set", "stage=vae") == 0
    config = weights.load_model(tmp_path / "run" / "model.safetensors").config
    assert config.vae.scale_factor != SMALL.vae.scale_factor
    # The next stage takes it from the file.
    model = tmp_path / "run" / "model.safetensors"
    assert command("--set", "stage=prior", "--output", tmp_path / "p", "--init", model) == 0
    prior = weights.load_model(tmp_path / "p" / "model.safetensors").config
    assert prior == config


def test_export_to_pytorch(golden_dir, tmp_path, monkeypatch):
    """Trained weights come out under the release's keys, at the release's own architecture."""
    init = tmp_path / "golden.safetensors"
    assert convert([str(golden_dir), str(init)]) == 0
    model = weights.load_model(init).config
    unit = model.vae.downscale * model.unet.downscale
    config = make_config(
        "rrdb",
        model=dataclasses.replace(model, text=None),
        data=DataConfig(crop=unit, batch=1, workers=0, presets=("bicubic",)),
        steps=1,
        validate_every=0,
    )
    monkeypatch.setitem(train.CONFIGS, "golden", config)
    pairs = write_pairs(tmp_path / "pairs", unit, unit)
    arguments = ["--config", "golden", "--data", pairs, "--output", tmp_path / "run"]
    arguments += ["--init", init, "--export-torch", tmp_path / "torch.safetensors"]
    assert train.main([*map(str, arguments)]) == 0
    ours = arrays(tmp_path / "run" / "model.safetensors")
    theirs = read_checkpoint(tmp_path / "torch.safetensors").tensors
    release = read_checkpoint(golden_dir / "weights.safetensors").tensors
    assert {n for n in release if not n.startswith("cond_stage_model.")} == theirs.keys()
    kernel = theirs["preprocess_model.conv_first.weight"].load()
    np.testing.assert_array_equal(kernel.transpose(2, 3, 1, 0), ours["rrdb.conv_first.kernel"])
    assert (kernel != release["preprocess_model.conv_first.weight"].load()).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optimizer.rate=1"], "optimizer.rate: small has no such field"),
        (["--set", "optimizer=1"], "not of the kind"),
        (["--set", "data.crop=big"], "not of the kind of 16"),
        (["--set", "steps=1.5"], "not of the kind of 2"),
        (["--set", "data.crop=17"], "data.crop 17 is not a multiple"),
        (["--set", "optimizer.schedule=slow"], "no schedule 'slow'"),
        (["--batch-size", "0"], "batch and crop are 1 or more"),
        (["--export", "/nowhere/m.safetensors"], "/nowhere: no such folder; make it first"),
        (["--export-torch", "m.safetensors"], "cannot be written in that form"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--init", "/nowhere.safetensors"], "/nowhere.safetensors: no such file"),
        (["--set", "parallel.fsdp=3"], "parallel.fsdp = 3"),
    ],
)
def test_bad_input_is_one_line_and_status_2(command, capsys, arguments, message):
    assert command(*arguments) == train.BAD_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_settings_reach_the_configuration():
    settings = {"optimizer.learning_rate": "1", "data.presets": '["bicubic"]', "times": "start"}
    config = train.make_config("tiny", settings)
    assert config.optimizer.learning_rate == 1.0 and isinstance(
        config.optimizer.learning_rate, float
    )
    assert config.data.presets == ("bicubic",) and config.times == "start"
    assert config.model == CONFIGS["tiny"].model


def test_the_configurations_are_listed(capsys):
    assert train.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in CONFIGS)
    with pytest.raises(SystemExit):
        train.main(["--config", "tiny"])
    assert "--data, --output needed" in capsys.readouterr().err


def test_a_missing_extra_is_one_line_that_names_it():
    code = "import sys; sys.modules['grain'] = None; import train"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(train.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and ".[train]" in result.stderr
