"""Checkpoints: whole or not at all, found again on any mesh, on a stand-in for a training state."""

import dataclasses
import functools
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.distributed_worker import run_python
from jax.sharding import NamedSharding, PartitionSpec

from dossr_jax import checkpoint, parallel
from dossr_jax.checkpoint import Checkpoints, differences
from dossr_jax.checkpoint.settings import (
    FREE_ON_RESUME,
    flat_fields,
    resume_config,
    stored_config,
)
from dossr_jax.config import (
    ConfigError,
    ParallelConfig,
    TrainConfig,
    VAEConfig,
    from_json,
)
from dossr_jax.errors import UserError
from dossr_jax.training import stages
from dossr_jax.training.stages import DoSSRStage

CONFIG = TrainConfig(stage=DoSSRStage())
DATA, LOG = {"samples": 48}, {"recent": [[0.1, 1 / 3]]}
ITEMS = {"config": CONFIG, "model": CONFIG.model, "data": DATA, "log": LOG}


class State(NamedTuple):
    step: Any
    key: Any
    learn: Any
    ema: Any
    opt_state: Any
    frozen: Any


def make_state(step=0):
    rng = np.random.default_rng(step)
    learn = {
        "control.down.0.kernel": jnp.asarray(rng.normal(size=(64, 256)), jnp.float32),
        "control.bias": jnp.asarray(rng.normal(size=8), jnp.float32),
    }
    return State(
        jnp.int32(step),
        jax.random.key_data(jax.random.key(step)),
        learn,
        jax.tree.map(lambda p: p + 1, learn),
        optax.adam(1e-3).init(learn),
        {"unet.kernel": jnp.asarray(rng.normal(size=(4, 4)), jnp.bfloat16)},
    )


def abstract(devices=1):
    """The state's shapes on a mesh of so many devices, kernels split over all of them."""
    mesh = parallel.make_mesh(devices, jax.devices()[:devices])

    def leaf(array):
        spec = PartitionSpec(None, "fsdp") if array.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, make_state())


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def opened(tmp_path, warnings):
    return functools.partial(Checkpoints, tmp_path / "run", keep=2, warn=warnings.append)


def write(opened, steps):
    with opened() as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), **ITEMS)
    return checkpoints


def test_what_is_saved_comes_back(opened):
    write(opened, [0, 7])
    with opened() as checkpoints:
        assert checkpoints.latest() == 7
        saved = checkpoints.restore(7, abstract())
        assert checkpoints.resume_config(7, CONFIG) == CONFIG
    # Frozen parameters are those of the first checkpoint.
    assert_equal(saved.state, make_state(7)._replace(frozen=make_state(0).frozen))
    assert (saved.data, saved.log) == (DATA, LOG)


def test_only_the_newest_stay_and_saving_twice_is_saving_once(opened):
    checkpoints = write(opened, [0, 3, 3, 6])
    assert checkpoints.steps() == [3, 6]
    before = checkpoint.damage(checkpoints.path(6))
    assert before is None
    write(opened, [6])
    assert checkpoints.steps() == [3, 6]


def test_a_new_folder_has_no_checkpoint(opened):
    with opened() as checkpoints:
        assert checkpoints.latest() is None


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run: a checkpoint could not be written"):
        Checkpoints(tmp_path / "run", keep=1, warn=print)


def test_a_folder_holds_data_and_no_code(opened):
    folder = write(opened, [0]).folder
    for path in (p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert b"pickle" not in content and not content.startswith(b"\x80"), path


def test_the_arrays_saved_are_those_of_the_moment(opened):
    """A step that donates the state right after save() starts does not reach what is written."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0)
    state = jax.tree.map(jnp.array, make_state(1))
    with opened() as checkpoints:
        checkpoints.save(1, state, **ITEMS)
        for _ in range(20):
            state = change(state)
    with opened() as checkpoints:
        assert_equal(checkpoints.restore(1, abstract()).state, make_state(1))


# --- damage -------------------------------------------------------------------------------------


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["state", "data", "files.json"])
def test_a_damaged_checkpoint_falls_back(opened, warnings, capfd, harm, name):
    checkpoints = write(opened, [2, 5])
    target = checkpoints.path(5) / name
    if target.is_dir():  # its largest file, where the numbers are
        files = (p for p in target.rglob("*") if p.is_file())
        target = max(files, key=lambda p: p.stat().st_size)
    harm(target)
    with opened() as checkpoints:
        assert checkpoints.latest() == 2
        assert_equal(checkpoints.restore(2, abstract()).state.learn, make_state(2).learn)
        # The run comes by the damaged step again.
        checkpoints.save(5, make_state(5), **ITEMS)
    assert checkpoints.steps() == [2, 5] and checkpoint.damage(checkpoints.path(5)) is None
    (warning,) = warnings
    assert "checkpoints/5 is damaged" in warning and "from" in warning
    assert str(checkpoints.path(2)) in warning
    assert (checkpoints.folder / "damaged" / "5").is_dir()
    assert "Traceback" not in capfd.readouterr().err


def test_no_whole_checkpoint_left_is_an_error(opened, warnings):
    checkpoints = write(opened, [2, 5])
    for step in (2, 5):
        shutil.rmtree(checkpoints.path(step) / "state")
    with opened() as checkpoints, pytest.raises(UserError, match="copy one back") as error:
        checkpoints.latest()
    assert str(checkpoints.path()) in str(error.value) and "\n" not in str(error.value)
    assert checkpoints.steps() == [2, 5] and not warnings


def test_damaged_frozen_parameters_are_an_error(opened):
    checkpoints = write(opened, [1])
    flip(next((checkpoints.folder / "frozen" / "0" / "params").glob("d/*")))
    with opened() as checkpoints, pytest.raises(UserError, match="frozen parameters are damaged"):
        checkpoints.restore(1, abstract())


def test_an_unfinished_folder_is_no_checkpoint(opened):
    checkpoints = write(opened, [1])
    unfinished = checkpoints.path().joinpath("4.orbax-checkpoint-tmp")
    shutil.copytree(checkpoints.path(1), unfinished)
    with opened() as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(4, make_state(4), **ITEMS)
    assert checkpoints.steps() == [1, 4] and not unfinished.exists()


# --- configurations -----------------------------------------------------------------------------


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return CHOICES.get(value, value + "?")
    if isinstance(value, tuple):
        return tuple(changed(v) for v in value) or ((0.5,) if value == () else value)
    return {0: 1, 1: 2}.get(value, value * 2) if value is not None else None


# A choice and another one that it may be exchanged for.
CHOICES = {
    "lr": "noise",
    "all": "visited",
    "empty": "both",
    "cosine": "constant",
    "float32": "bfloat16",
    "none": "full",
    "trunc_12": "trunc_13",
    "sde": "ode",
    "uniform": "asinh",
    "wavelet": "adain",
}


def with_field(config, name, value):
    """A configuration with another value in a dotted field."""
    values = section = dataclasses.asdict(config)
    *parents, last = name.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    return from_json(TrainConfig, json.dumps(values))


def every_change():
    """(dotted field, configuration with another value in it) for the fields of every stage."""
    for stage in (getattr(stages, name)() for name in stages.__all__ if name != "Stage"):
        model = stage.trains[0]()  # defaults of the system that it trains
        base = TrainConfig(stage=stage, model=model)
        for name, value in flat_fields(dataclasses.asdict(base)):
            if value is None or name == "stage.name":
                continue
            try:
                yield base, name, with_field(base, name, changed(value))
            except ConfigError:
                continue  # it cannot change alone: others have to change with it


def test_on_resume_a_field_is_free_or_refused_by_name_as_the_table_says():
    seen = {}
    for base, name, other in every_change():
        found = differences(base, other)
        seen.setdefault(name, bool(found))
        if name in FREE_ON_RESUME:
            assert found == [], name
        else:
            assert len(found) == 1 and found[0].startswith(f"{name} is "), name
    assert set(FREE_ON_RESUME) <= seen.keys()
    assert len(seen) > 60 and {"model.sampler.steps", "stage.lora_rank", "seed"} <= seen.keys()


def test_a_run_of_any_system_can_be_resumed():
    for stage in (getattr(stages, name)() for name in stages.__all__ if name != "Stage"):
        config = TrainConfig(stage=stage, model=stage.trains[0]())
        stored = json.loads(json.dumps(stored_config(config, config.model)))
        assert resume_config(stored, config, Path("run/checkpoints/1")) == config


def test_resuming_takes_what_is_free_and_keeps_the_model_of_the_file(opened):
    """Length, cadence and layout follow the new call; a file's scale and prompts stay."""
    model = dataclasses.replace(CONFIG.model, vae=VAEConfig(scale_factor=0.5), prompt="sharp")
    asked = dataclasses.replace(
        CONFIG,
        steps=9,
        save_every=2,
        data=dataclasses.replace(CONFIG.data, workers=7, prefetch=8),
        parallel=ParallelConfig(fsdp=4, dtype="bfloat16"),
    )
    with opened() as checkpoints:
        checkpoints.save(1, make_state(1), **ITEMS | {"model": model})
        checkpoints.wait()
        assert checkpoints.resume_config(1, asked) == dataclasses.replace(asked, model=model)
        sampler = dataclasses.replace(asked.model.sampler, order=1)
        other = dataclasses.replace(asked, model=dataclasses.replace(asked.model, sampler=sampler))
        with pytest.raises(UserError) as error:
            checkpoints.resume_config(1, other)
    text = str(error.value)
    assert "model.sampler.order is 3 there, 1 now" in text
    assert "data." not in text and "\n" not in text and str(checkpoints.folder) in text


def test_a_configuration_of_another_version_is_an_error(opened):
    checkpoints = write(opened, [1])
    path = checkpoints.path(1) / "config" / "metadata"
    stored = json.loads(path.read_text())
    stored["asked"] |= {"colour": "red"}
    path.write_text(json.dumps(stored))
    with opened() as checkpoints, pytest.raises(UserError, match="colour: unknown field"):
        checkpoints.resume_config(1, CONFIG)


# --- meshes -------------------------------------------------------------------------------------

MOVE = """
import sys
from pathlib import Path
import jax
from test_checkpoint import CONFIG, ITEMS, Checkpoints, abstract, assert_equal, make_state
folder, last = Path(sys.argv[1]), None
for step, devices in enumerate((2, 4, 1, 4, 2)):
    like = abstract(devices)
    with Checkpoints(folder, keep=2, warn=print) as checkpoints:
        if last is None:
            state = jax.device_put(make_state(), jax.tree.map(lambda leaf: leaf.sharding, like))
        else:
            state = checkpoints.restore(last, like).state
            kernel = state.learn["control.down.0.kernel"]
            assert len(kernel.sharding.device_set) == devices
            assert kernel.addressable_shards[0].data.shape == (64, 256 // devices)
        assert_equal(state, make_state())
        checkpoints.save(step, state, **ITEMS)
    last = step
print("done")
"""


def test_restores_onto_more_and_fewer_devices(tmp_path):
    assert "done" in run_python(MOVE, tmp_path, devices=4).stdout


# --- full disk ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_ones(opened, monkeypatch):
    write(opened, [1])
    with opened() as checkpoints:
        full = shutil.disk_usage("/")._replace(free=100_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError, match="0.1 MB are free.* whole ones: 1; free space"):
            checkpoints.save(2, make_state(2), **ITEMS)
        assert checkpoints.latest() == 1
        monkeypatch.undo()
        checkpoints.save(2, make_state(2), **ITEMS)
    assert checkpoints.steps() == [1, 2]


def test_a_write_that_fails_in_the_background_is_told(opened):
    """Files limited to 10 kB fail where a full disk or a quota would."""
    write(opened, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = opened()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"\(File too large\); whole ones: 1;") as error:
            checkpoints.save(2, make_state(2), **ITEMS)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpoints.__exit__(UserError, error.value, None)
    with opened() as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, make_state(2), **ITEMS)
    assert checkpoints.steps() == [1, 2]
