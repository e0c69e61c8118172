"""Compiled programs are kept between runs, where the user or JAX's own variable says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from helpers.distributed_worker import ROOT
from helpers.models import tiny_model
from helpers.pictures import save

from dossr_jax.restore import split

OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def restore(home: Path, output: Path, *flags: str, **variables: str) -> None:
    """Restore a small picture in a process that knows nothing of this one's cache."""
    picture = home / "picture.png"
    if not picture.exists():
        save(picture, np.zeros((4, 4, 3), np.uint8))
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    subprocess.run(
        [sys.executable, "infer.py", picture, "--output", output, *flags],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables,
        check=True,
        capture_output=True,
    )


def programs(folder: Path) -> set[str]:
    """What is kept: programs as they were traced, and as XLA compiled them."""
    kept = {path.name for kind in ("*-cache", "*.zip") for path in folder.rglob(kind)}
    assert not kept or {name.rpartition(".")[2] == "zip" for name in kept} == {True, False}
    return kept


def test_the_second_start_finds_the_programs_of_the_first(home, tmp_path):
    model = ("--model", "realesrgan-anime")
    restore(home, tmp_path / "none", *model, "--no-cache")
    assert not programs(home)
    restore(home, tmp_path / "first", *model)
    kept = programs(home / "dossr_jax")
    assert kept
    restore(home, tmp_path / "second", *model)
    assert programs(home / "dossr_jax") == kept
    elsewhere = tmp_path / "elsewhere"
    restore(
        home,
        tmp_path / "third",
        *model,
        JAX_COMPILATION_CACHE_DIR=str(elsewhere),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert programs(elsewhere) and programs(home / "dossr_jax") == kept


def test_equal_models_share_a_program_and_hash_once():
    (first, _), (second, _), (plain, _) = (
        split(tiny_model()),
        split(tiny_model()),
        nnx.split(tiny_model()),
    )
    assert first == second and hash(first) == hash(second) == hash(plain)
    first.nodes.clear()  # nothing is left to be hashed anew
    assert hash(first) == hash(second)
