"""The wheel alone, in a fresh environment and away from the checkout, does what the README says.

Needs a package index: build tools and dependencies are installed as a user would.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import names_for, picture, save
from PIL import Image

import dossr_jax

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of an sdist and of a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", ROOT, "--outdir", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """The programs of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    pip_install(folder / "bin", wheel)
    return folder / "bin"


def pip_install(bin_folder, requirement):
    command = [bin_folder / "python", "-m", "pip", "install", "--quiet", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(bin_folder, tmp_path):
    """Run a program of the environment in an empty folder, without the checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["JAX_PLATFORMS"] = "cpu"

    def run(program, *arguments, status=0):
        done = subprocess.run(
            [bin_folder / program, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, f"{program} {arguments}: {done.stdout}{done.stderr}"
        return done

    return run


def files_below(folder):
    """Relative paths of the files that belong to a folder of the checkout."""
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix() for p in paths}


def test_the_wheel_holds_the_package_and_the_configurations(wheel):
    expected = {f"dossr_jax/{name}" for name in files_below(ROOT / "dossr_jax")}
    expected |= {f"dossr_jax/configs/{name}" for name in files_below(ROOT / "configs")}
    assert {"dossr_jax/py.typed", "dossr_jax/assets/dossr-mini.safetensors"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        assert {n for n in archive.namelist() if ".dist-info/" not in n} == expected


def test_the_version_is_one(built, wheel):
    (source,) = built.glob("*.tar.gz")
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert released[0] == dossr_jax.__version__
    assert wheel.name.split("-")[1] == dossr_jax.__version__
    with tarfile.open(source) as archive:
        (top,) = {name.split("/")[0] for name in archive.getnames()}
    assert top == f"dossr_jax-{dossr_jax.__version__}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_has_help_without_any_extra(run, command):
    assert run(command, "--help").stdout.startswith("usage")


def test_the_configurations_are_found(run):
    listed = {line.split()[0] for line in run("dossr-train", "--list").stdout.splitlines()}
    assert {"tiny", "mini_dossr", "sd21_dossr"} <= listed


def test_a_photo_is_restored(run, tmp_path):
    run("dossr-restore", ROOT / "examples" / "lake.png", "--output", "restored")
    with Image.open(ROOT / "examples" / "lake.png") as photo:
        width, height = photo.size
    with Image.open(tmp_path / "restored" / "lake.png") as restored:
        assert restored.size == (4 * width, 4 * height)


def test_the_example_in_python_runs_as_written(run, tmp_path, bin_folder):
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    for name in ("photo.jpg", "a.png", "b.png"):
        save(tmp_path / name, picture(24, 32))
    (tmp_path / "example.py").write_text(example)
    run("python", "example.py")
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (4 * 32, 4 * 24)
    said = run("python", "-c", "import dossr_jax; print(dossr_jax.__file__)").stdout
    assert Path(said.strip()).is_relative_to(bin_folder.parent)


def test_training_names_its_extra_and_with_it_trains_and_resumes(run, tmp_path, bin_folder, wheel):
    for name in [*names_for("train", 3), *names_for("validation", 1)]:
        save(tmp_path / "photos" / name, picture(96, 96))
    tiny = ["--config", "tiny", "--data", "photos", "--output", "run"]
    lack = run("dossr-train", *tiny, "--steps", "2", status=2).stderr
    assert lack.count("\n") == 1 and "dossr-jax[train]" in lack

    lack = run("dossr-prepare", "photos", "set", status=2).stderr
    assert lack.count("\n") == 1 and "dossr-jax[train]" in lack

    pip_install(bin_folder, f"{wheel}[train]")
    run("dossr-prepare", "photos", "set", "--tile", "96")
    run("dossr-train", *tiny, "--steps", "2")
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_text()
    run("dossr-train", *tiny, "--steps", "4")
    # It resumed: what was there stays, and only later steps follow.
    assert metrics.read_text().startswith(before)
    added = metrics.read_text()[len(before) :].splitlines()
    assert {json.loads(line)["step"] for line in added} == {4}

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "dark.png")
    run("dossr-restore", "dark.png", "--output", "out", "--model", "run/model.safetensors")
    assert (tmp_path / "out" / "dark.png").is_file()
