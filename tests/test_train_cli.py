"""train.py: from the command line to a model file."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pictures import picture, save
from helpers.runs import write_model, write_pairs
from helpers.small import SMALL

from dossr_jax import systems, weights
from dossr_jax.config import to_json
from dossr_jax.convert.__main__ import main as convert
from dossr_jax.errors import BAD_INPUT
from dossr_jax.pipeline import Upscaler
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.training.cli import main
from dossr_jax.training.experiments import configs_folder, list_configs

# Files and arguments are what counts here; test_training.py has the numbers.
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("init") / "init.safetensors", SMALL)


SMALL_FILE = """
from helpers.small import make_config
from dossr_jax.config import DataConfig

data = DataConfig(crop=16, batch=4, workers=0)
CONFIG = make_config("rrdb", data=data, steps=2, save_every=2, validate_every=0)
"""


@pytest.fixture
def command(pairs, init, tmp_path):
    """Function (*arguments) -> exit status of the command with a configuration file "small.py"."""
    config = tmp_path / "small.py"
    config.write_text(SMALL_FILE)
    fixed = ["--config", config, "--data", pairs, "--output", tmp_path / "run", "--init", init]
    return lambda *arguments: main([str(a) for a in [*fixed, *arguments]])


def arrays(path):
    tensors, _ = weights.read_safetensors(path)
    return {name: tensor.load() for name, tensor in tensors.items()}


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
    # The same command finds all done and writes the same, with the default sampler that one wants.
    capsys.readouterr()
    other = ["--export-dtype", "float32", "--export-sampler", "fidelity=0.6"]
    assert command("--export", exported, *other) == 0
    config, _ = systems.open_model(exported)
    assert config.sampler == dataclasses.replace(systems.open_model(init)[0].sampler, fidelity=0.6)
    assert f"wrote {exported}" in capsys.readouterr().out
    for name, value in arrays(exported).items():
        np.testing.assert_array_equal(value, model[name])


def test_the_model_is_the_average(command, tmp_path):
    """With a decay of 0 in its place there is none, and the last weights go out."""
    assert command() == 0
    assert command("--optimizer.ema-decay", "0", "--output", tmp_path / "last") == 0
    average, last = (arrays(tmp_path / d / "model.safetensors") for d in ("run", "last"))
    name = "rrdb.conv_first.kernel"
    assert (average[name] != last[name]).any()
    np.testing.assert_allclose(average[name], last[name], atol=0.01)


def test_an_autoencoder_learns_the_scale_of_its_latents(command, tmp_path):
    def of_stage(name):
        file = tmp_path / f"{name}_small.py"
        file.write_text(SMALL_FILE.replace("rrdb", name))
        return "--config", file

    assert command(*of_stage("vae")) == 0
    config = systems.load_model(tmp_path / "run" / "model.safetensors").config
    assert config.vae.scale_factor != SMALL.vae.scale_factor
    # The next stage takes it from the file.
    model = tmp_path / "run" / "model.safetensors"
    assert command(*of_stage("prior"), "--output", tmp_path / "p", "--init", model) == 0
    assert systems.load_model(tmp_path / "p" / "model.safetensors").config == config
    # And what was said of its training, to which each stage adds an entry.
    _, header = weights.read_safetensors(tmp_path / "p" / "model.safetensors")
    entries = json.loads(header["training"])
    assert [(e["config"].endswith("small.py"), e["steps"]) for e in entries] == [(True, 2)] * 2
    assert all(np.isfinite(e["train"]["loss"]) and e["version"] for e in entries)


def test_export_to_pytorch(golden_dir, tmp_path):
    """Trained weights come out under the release's keys, at the release's own architecture."""
    init = tmp_path / "golden.safetensors"
    assert convert([str(golden_dir), str(init)]) == 0
    model = systems.load_model(init).config
    unit = model.vae.downscale * model.unet.downscale
    changes = f"""
from dossr_jax.config import DoSSRConfig, from_json

CONFIG = dataclasses.replace(
    CONFIG,
    model=from_json(DoSSRConfig, {to_json(dataclasses.replace(model, text=None))!r}),
    data=DataConfig(crop={unit}, batch=1, workers=0, presets=("bicubic",)),
    steps=1,
)
"""
    file = tmp_path / "golden.py"
    file.write_text(f"import dataclasses\n{SMALL_FILE}{changes}")
    pairs = write_pairs(tmp_path / "pairs", unit, unit)
    arguments = ["--config", file, "--data", pairs, "--output", tmp_path / "run"]
    arguments += ["--init", init, "--export-torch", tmp_path / "torch.safetensors"]
    assert main([*map(str, arguments)]) == 0
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
        (["--optimizer.rate", "1"], "Unrecognized options: --optimizer.rate, 1"),
        (["--set", "optimizer=1"], "Unrecognized options: --optimizer, 1"),
        (["--data.crop", "big"], "--data.crop: invalid literal for int() with base 10: 'big'"),
        (["--set", "seed=1.5"], "--seed: invalid literal for int()"),
        (["--data.crop", "17"], "data.crop 17: must be a multiple of 4"),
        (["--optimizer.schedule", "slow"], "Expected one of ('cosine', 'constant')"),
        (["--stage.lora-rank", "2"], "Unrecognized options: --stage.lora-rank, 2"),
        (["--batch-size", "0"], "data.batch 0: must be greater than or equal to 1"),
        (["--config", "tinny"], "no configuration 'tinny'; there are mini_adversarial"),
        (["--config", "none.py"], "none.py: no such file"),
        (["--export", "/nowhere/m.safetensors"], "/nowhere: no such folder; make it first"),
        (["--export-sampler", "fidelity=2"], "model.sampler.fidelity 2.0: must be"),
        (["--export-torch", "m.safetensors"], "cannot be written in that form"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--init", "/nowhere.safetensors"], "/nowhere.safetensors: no such file"),
        (["--parallel.fsdp", "3"], "parallel.fsdp = 3"),
        (["--data", __file__], f"{__file__}: not a folder"),
        (["--validate-every", "1", "--validation", "/nowhere"], "/nowhere: no such file"),
        (["--data.crop", "64"], "32x40 is less than a crop"),
        (["--output", __file__], f"{__file__}: cannot be written into; choose a folder"),
        (["--export", "/"], "/: a folder; name a file"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(
    command, tmp_path, capsys, arguments, message
):
    before = set(tmp_path.iterdir())
    assert command(*arguments) == BAD_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert set(tmp_path.iterdir()) == before


def test_one_photo_is_refused(command, tmp_path, capsys):
    save(tmp_path / "photos" / "a.png", picture(40, 32))
    assert command("--data", tmp_path / "photos") == BAD_INPUT
    assert "training and validation need one each" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_among_the_images_that_it_reads_is_refused(command, pairs, tmp_path, capsys):
    assert command("--output", pairs / "run") == BAD_INPUT
    assert f"{pairs / 'run'}: lies in {pairs}, whose images are --data" in capsys.readouterr().err
    save(tmp_path / "photos" / "a.png", picture(40, 32))
    photos = tmp_path / "photos"
    assert command("--validation", photos, "--output", photos / "run") == BAD_INPUT
    assert "images are --validation" in capsys.readouterr().err
    assert not list(tmp_path.rglob("run")) and not list(pairs.rglob("run"))


def test_a_run_that_fails_at_once_leaves_an_existing_folder_as_it_was(command, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "notes").mkdir(parents=True)
    (run / "notes" / "mine.txt").write_text("mine")
    assert command("--init", "/nowhere.safetensors") == BAD_INPUT
    assert [path.name for path in run.rglob("*")] == ["notes", "mine.txt"]
    (run / "checkpoints" / "7").mkdir(parents=True)  # a run, though a damaged one
    assert command() == BAD_INPUT
    assert "every checkpoint in it is damaged" in capsys.readouterr().err
    assert (run / "checkpoints" / "7").is_dir()


def test_help_of_a_configuration_shows_types_values_and_descriptions(capsys):
    """Also where the configuration is named first, alone; what is changed is shown changed."""
    options = ["--optimizer.learning-rate", "1e-5", "--set", "data.batch=24"]
    assert main(["tiny", *options, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--optimizer.learning-rate FLOAT the highest of the schedule (default: 1e-05)" in shown
    assert "--data.batch INT samples per step, over all devices" in shown
    assert "(default: 24)" in shown and "--stage.times {all,visited,first}" in shown
    assert main(["--help"]) == 0
    assert "--optimizer.learning-rate FLOAT" not in capsys.readouterr().out


def test_every_configuration_is_listed_with_its_summary(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    shared = {"__init__", "mini", "mini_task", "sd21_task"}
    files = {p.stem for p in configs_folder().glob("*.py")} - shared
    assert {line.split()[0] for line in listed} == files == set(list_configs())
    assert all(len(line.split()) > 3 for line in listed)
    with pytest.raises(SystemExit):
        main(["--config", "tiny"])
    assert "--data, --output needed" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["grain", "optax", "numpy.does_not_exist"])
def test_only_a_missing_module_of_the_extra_is_one_line_that_names_the_extra(module):
    code = f"""
import sys
from dossr_jax.training import cli
sys.modules[{module!r}] = None
def fails(*args):
    import {module}
cli._run = fails
sys.exit(cli.main(["--config", "tiny", "--data", "d", "--output", "o"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = result.stderr.splitlines()
    if module.startswith("numpy"):
        assert result.returncode == 1 and lines[0].startswith("Traceback")
    else:
        assert result.returncode == 2 and len(lines) == 1
        assert module in lines[0] and "dossr-jax[train]" in lines[0]
