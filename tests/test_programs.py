"""Stored programs: what they give is what tracing gives, and they are used where they fit alone."""

import dataclasses
import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.models import tiny_model
from PIL import Image

from dossr_jax import cli, export, options, programs, systems, weights
from dossr_jax.errors import UserError
from dossr_jax.folder.model import hash_of_model
from dossr_jax.pipeline import Upscaler, networks
from dossr_jax.pipeline import upscaler as upscaler_module
from dossr_jax.programs import files
from dossr_jax.programs.calling import FOLDER
from dossr_jax.restore import Layout

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
DEVICE = jax.devices()[:1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    systems.save_model(path, tiny_model())
    return path


@pytest.fixture(scope="module")
def expected(model) -> np.ndarray:
    """What tracing gives."""
    return Upscaler.from_pretrained(model, devices=DEVICE).restore(PICTURE)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """A folder with the program for a CPU."""
    folder = tmp_path_factory.mktemp("programs")
    assert run_export(model, folder, "--platform", "cpu") == 0
    return folder


@pytest.fixture
def untraced(monkeypatch):
    """Nothing can be traced."""
    monkeypatch.setattr(networks, "restore", refuse)


def refuse(*arguments):
    raise AssertionError("traced")


refuse.lower = refuse


def run_export(model: Path, folder: Path, *flags: str) -> int:
    return export.main([str(model), "--output", str(folder), "--sizes", "12x9", *flags])


def restored(model: Path, **options) -> np.ndarray:
    return Upscaler.from_pretrained(model, devices=DEVICE, **options).restore(PICTURE)


def test_an_exported_program_gives_what_tracing_gives(model, exported, expected, untraced):
    np.testing.assert_array_equal(restored(model, programs=exported), expected)


def test_a_program_beside_the_model_is_found(model, exported, expected, tmp_path, untraced):
    """And it makes no other model of a folder."""
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(model.read_bytes())
    before = hash_of_model(str(tmp_path))
    os.symlink(exported, tmp_path / FOLDER)
    np.testing.assert_array_equal(restored(path), expected)
    assert hash_of_model(str(tmp_path)) == before


def test_a_program_that_does_not_fit_is_left_alone(model, exported, untraced):
    upscaler = Upscaler.from_pretrained(model, devices=DEVICE, programs=exported)
    upscaler.restore(PICTURE, steps=1, seed=3, fidelity=0.5)  # what is traced fits all the same
    for change in ({"truncate": True}, {"color_fix": "none"}):
        with pytest.raises(AssertionError, match="traced"):
            upscaler.restore(PICTURE, **change)


def test_a_program_of_other_code_is_left_alone(model, exported, monkeypatch, untraced):
    monkeypatch.setattr(programs.description, "code_hash", lambda: "other")
    with pytest.raises(AssertionError, match="traced"):
        restored(model, programs=exported)


def test_descriptions_differ_where_programs_do():
    layout, shape = Layout(color_fix="none", devices=1), jax.ShapeDtypeStruct((1, 2), np.float32)

    def key(name="restore", about="float32", layout=layout, shape=shape, platform="cpu"):
        return files.key_of(
            programs.describe(name, {"dtype": about}, layout, {"a": shape}, platform)
        )

    others = [
        key(name="other"),
        key(about="bfloat16"),
        key(layout=dataclasses.replace(layout, tile=4)),
        key(shape=jax.ShapeDtypeStruct((2, 1), np.float32)),
        key(shape=jax.ShapeDtypeStruct((1, 2), np.int32)),
        key(platform="cuda"),
    ]
    assert key() == key() and len({key(), *others}) == len(others) + 1


@pytest.mark.parametrize("damage", ["cut", "changed", "renamed", "no zip"])
def test_a_damaged_program_is_one_line(model, exported, damage, tmp_path):
    (path,) = exported.iterdir()
    content, name = bytearray(path.read_bytes()), path.name
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "changed":
        content[len(content) // 2] ^= 1
    elif damage == "renamed":
        other = files.read_program(path)
        description = other.description | {"platform": "tpu"}
        other = dataclasses.replace(other, description=description)
        content = files.write_program(tmp_path / "a", "", other).read_bytes()
    else:
        content = b"text"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged program \(.*\); export it again"):
        restored(model, programs=tmp_path)


def test_a_folder_that_is_none_is_one_line(model, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        restored(model, programs=tmp_path / "missing")


def test_the_second_start_traces_nothing(model, expected, tmp_path, monkeypatch):
    np.testing.assert_array_equal(restored(model, keep=tmp_path / "kept"), expected)
    (path,) = (tmp_path / "kept").iterdir()
    content = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(networks, "restore", refuse)
        np.testing.assert_array_equal(restored(model, keep=tmp_path / "kept"), expected)
    path.write_bytes(content[:-9])  # a damaged one of ours is made again, without a word
    np.testing.assert_array_equal(restored(model, keep=tmp_path / "kept"), expected)
    assert zipfile.ZipFile(path).testzip() is None


def test_what_cannot_be_kept_stops_nothing(model, expected, tmp_path):
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(restored(model, keep=tmp_path / "file" / "kept"), expected)


def test_the_oldest_programs_go_first(tmp_path):
    for age, name in enumerate("abc"):
        path = tmp_path / (name + files.SUFFIX)
        path.write_text("")
        os.utime(path, (1000 - age, 1000 - age))
    files.keep_newest(tmp_path, 2)
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "b"}


def test_programs_for_other_platforms_need_none_of_them(model, tmp_path, capsys):
    flags = "--platform", "cuda", "tpu", "--dtype", "bfloat16", "--bits", "16"
    assert run_export(model, tmp_path, *flags) == 0
    stored = [files.read_program(path) for path in sorted(tmp_path.iterdir())]
    assert [s.description["platform"] for s in stored] == ["cuda", "tpu"]
    for one in stored:
        program = jax.export.deserialize(bytearray(one.data))
        assert program.platforms == (one.description["platform"],) and program.nr_devices == 1
        i = one.data.find(b".py")
        assert i < 0, one.data[max(0, i - 60) : i + 20]  # nor where the sources lie here
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "attention of" in lines[0]


@pytest.mark.slow
def test_smaller_groups_of_a_batch_have_programs(model, tmp_path, monkeypatch):
    assert run_export(model, tmp_path, "--batch", "2") == 0
    monkeypatch.setattr(networks, "restore", refuse)
    upscaler = Upscaler.from_pretrained(model, devices=DEVICE, programs=tmp_path)
    assert len(upscaler.restore([PICTURE] * 3, batch_size=2)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dossr-mini"], "say where to write: --output"),
        (["missing.safetensors"], "no such model"),
        (["dossr-mini", "--output", "x", "--color-fix", "other"], "invalid choice"),
        (["dossr-mini", "--output", "x", "--sizes", "0x3"], "give WIDTHxHEIGHT"),
    ],
)
def test_what_cannot_be_exported(arguments, message, capsys):
    try:
        status = export.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2 and message in capsys.readouterr().err


def test_weights_that_are_not_finite_are_one_line_of_the_command(model, tmp_path, capsys):
    """The command reads them while the first program compiles."""
    config, tensors = systems.open_model(model)
    arrays = {name: np.array(tensor) for name, tensor in tensors.items()}
    arrays["rrdb.conv_first.bias"][0] = np.nan
    path = tmp_path / "nan.safetensors"
    weights.write_safetensors(path, arrays, systems.metadata_for(config))
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert cli.main([str(tmp_path / "a.png"), "-o", str(out), "--model", str(path)]) == 2
    errors = [e for e in capsys.readouterr().err.splitlines() if "error: " in e]
    assert len(errors) == 1 and "NaN or infinity" in errors[0]
    assert not (out / "a.png").exists()


def test_the_models_of_the_options_are_those_of_the_package():
    assert set(options.MODELS) == {*upscaler_module.BUILT_IN, *upscaler_module.PACKAGED}
