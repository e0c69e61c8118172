"""Folders in the layout of Hugging Face: what `--card` writes loads wherever a model is taken."""

import json
import shutil

import numpy as np
import pytest
import yaml
from helpers.checkpoints import assert_one_line, read_file, run, same
from helpers.models import TINY, tiny_model
from safetensors.numpy import load_file, save_file

from dossr_jax import systems
from dossr_jax.config import LatentConfig
from dossr_jax.convert.card import make_card
from dossr_jax.convert.reading import load
from dossr_jax.errors import UserError
from dossr_jax.evaluate.models import read_config
from dossr_jax.systems import Model
from dossr_jax.training.history import describe_training

TRAINING = json.dumps([{"config": "tiny", "steps": 3, "train": {"loss": 1.0}}])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    systems.save_model(path, tiny_model(), notes={"training": TRAINING, "data": "none at all"})
    return path


@pytest.fixture(scope="module")
def written(file, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "my-model"
    assert run(file, path, "--card", "--licence", "cc-by-sa-4.0") == 0
    return path


@pytest.fixture
def folder(written, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(written, tmp_path / "my-model")


def front_of(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_folder_holds_the_model_its_configuration_and_a_card(file, folder):
    assert {f.name for f in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert same(read_file(folder / "model.safetensors"), read_file(file))
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "dossr_jax/1" and config["system"] == "dossr"
    assert config["unet"]["model_channels"] == TINY.unet.model_channels
    text = (folder / "README.md").read_text()
    front = front_of(text)
    assert front["license"] == "cc-by-sa-4.0" and front["library_name"] == "dossr_jax"
    assert front["pipeline_tag"] == "image-to-image" and "super-resolution" in front["tags"]
    assert "base_model" not in front  # not of the size of SD 2.1
    assert "training: config tiny, steps 3" in text and "data: none at all" in text
    assert "--model my-model" in text


def test_it_loads_by_its_path_wherever_a_model_is_taken(file, folder, tmp_path):
    model = load(folder)
    assert model.config == TINY
    x = np.asarray(model.unet.conv_out.kernel[...])
    np.testing.assert_array_equal(x, load(file).unet.conv_out.kernel[...])
    assert read_config(str(folder)) == TINY
    assert json.loads(describe_training(folder, tmp_path, config="b", steps=1))[0]["steps"] == 3
    assert run(folder, tmp_path / "again.safetensors") == 0
    assert same(read_file(tmp_path / "again.safetensors"), read_file(file))


def test_what_a_file_tells_of_itself_stays_with_it(file, folder, tmp_path):
    assert run(folder, tmp_path / "half.safetensors", "--dtype", "bfloat16") == 0
    header = systems.read_header(tmp_path / "half.safetensors")
    assert header == {"training": TRAINING, "data": "none at all", "licence": "cc-by-sa-4.0"}
    assert run(tmp_path / "half.safetensors", tmp_path / "orbax", "--to", "orbax") == 0
    assert systems.read_header(tmp_path / "orbax") == header
    assert run(tmp_path / "orbax", tmp_path / "card", "--card") == 0
    assert front_of((tmp_path / "card/README.md").read_text())["license"] == "cc-by-sa-4.0"


def test_weights_without_metadata_have_it_from_config_json(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).config == TINY
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="neither a checkpoint of"):
        load(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda c: {**c, "unet": {**c["unet"], "head_dim": 4}},
            "unet.head_dim is 4 here and 8 there",
        ),
        (lambda c: {**c, "system": "sinsr"}, 'system "sinsr": unknown'),
        (lambda c: {**c, "width": 3}, "width: unknown field"),
        (lambda c: {"model_type": "bert"}, "it is none of dossr_jax"),
        (lambda c: [], "it is none of dossr_jax"),
    ],
)
def test_another_model_s_config_json_is_refused_in_one_line(folder, capsys, damage, says):
    path = folder / "config.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    capsys.readouterr()
    assert run(folder, folder.parent / "b.safetensors") == 2
    assert_one_line(capsys.readouterr().err, f"{path}: not the configuration", says)
    assert not (folder.parent / "b.safetensors").exists()
    assert load(folder / "model.safetensors").config == TINY


def test_only_a_folder_of_its_kind_is_replaced(file, folder, tmp_path, capsys):
    assert run(file, folder, "--card") == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run(file, folder, "--card", "--overwrite") == 0
    assert front_of((folder / "README.md").read_text())["license"] == "unknown"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").touch()
    assert run(file, tmp_path / "other", "--card", "--overwrite") == 2
    assert run(file, tmp_path / "other.safetensors", "--licence", "mit") == 2
    assert run(file, tmp_path / "back", "--card", "--to", "orbax") == 2
    assert "--card is for --to dossr" in capsys.readouterr().err


@pytest.mark.parametrize("name", [system.name for system in systems.SYSTEMS])
def test_every_system_has_a_card_that_says_what_is_known(name):
    system = next(system for system in systems.SYSTEMS if system.name == name)
    config = next(iter(system.configurations.values()), system.config())
    text = make_card(Model(config, {}), {}, name="a")
    front = front_of(text)
    assert (system.licence or "") in text
    assert front["license"] == ("unknown" if system.licence is None else "other")
    on_sd = isinstance(config, LatentConfig)
    assert ("base_model" in front) == on_sd and ("Open RAIL++-M" in text) == on_sd
