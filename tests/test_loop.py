"""Runs from end to end: resuming, stopping, guarding, recording; in this process, at tiny size."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers.pictures import names_for, picture, save
from helpers.runs import write_model, write_pairs
from helpers.small import SMALL, make_config
from PIL import Image

from dossr_jax import parallel
from dossr_jax.checkpoint import Checkpoints
from dossr_jax.config import DataConfig
from dossr_jax.errors import UserError
from dossr_jax.training.journal import METRICS_FILE, Journal
from dossr_jax.training.loop import train
from dossr_jax.training.stages import RRDBStage
from dossr_jax.training.state import abstract_run
from dossr_jax.training.validation import IMAGES, bucket_times

# A run that goes on is compared with one that did not stop: of the same programs, whichever.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_quickly):
    """Train on a few pairs, from a random model, into the folder given as `output`."""
    folder = tmp_path_factory.mktemp("start")
    pairs, model = write_pairs(folder / "pairs"), write_model(folder / "m.safetensors", SMALL)
    return functools.partial(train, data=pairs, init=model)


def config_of(stage="rrdb", **changes):
    defaults = {
        "data": DataConfig(crop=16, batch=4, workers=0),
        "optimizer": {"schedule": "constant"},
        "steps": STEPS,
        "save_every": 2,
        "keep": 2,
        "validate_every": 0,
        "log_every": 2,
    }
    return make_config(stage, **{**defaults, **changes})


CONFIG = config_of(validate_every=3)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run(CONFIG, output=folder), folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished[1], tmp_path / "run")


@pytest.fixture
def stop_at(monkeypatch):
    """Function that makes this process receive a signal while a given step is under way."""

    def arrange(step, number=signal.SIGTERM):
        advance = Journal.advance

        def interrupted(self, now):
            advance(self, now)
            if now == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Journal, "advance", interrupted)

    return arrange


def saved(folder, config):
    """(step, everything in the newest checkpoint of a run but the path of its data)."""
    mesh = parallel.make_mesh(1)
    with Checkpoints(folder, keep=2, warn=pytest.fail) as checkpoints:
        step = checkpoints.latest()
        return step, checkpoints.restore(step, abstract_run(config, mesh).state)


def assert_same_end(folder, other, config):
    """Two runs have the same last checkpoint and the same record, to the last bit."""
    (step, one), (other_step, two) = saved(folder, config), saved(other, config)
    assert step == other_step == config.steps
    assert (one.data, one.log) == (two.data, two.log)
    paths = jax.tree_util.tree_leaves_with_path(one.state)
    for (path, a), b in zip(paths, jax.tree.leaves(two.state), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert (folder / METRICS_FILE).read_bytes() == (other / METRICS_FILE).read_bytes()


def lines(folder, kind):
    entries = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == kind]


def test_a_stopped_run_ends_as_one_that_was_not(run, tmp_path, stop_at):
    """Weights, average, optimiser, data stream, log: by SIGTERM and the same command again."""
    config = config_of("prior", validate_every=4)
    whole = run(config, output=tmp_path / "whole")
    assert whole.complete and int(whole.run.state.step) == STEPS
    parts = tmp_path / "parts"
    for stop in (3, 4):  # between log lines, and where log and validation are due
        stop_at(stop)
        assert not run(config, output=parts).complete
        assert saved(parts, config)[0] == stop
    assert run(config, output=parts).complete
    assert_same_end(tmp_path / "whole", parts, config)
    assert [entry["step"] for entry in lines(parts, "train")] == [2, 4, 6]
    assert [entry["step"] for entry in lines(parts, "validation")] == [0, 4, 6]


@pytest.fixture
def heeding_ctrl_c():
    """A shell has what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_a_run_and_a_second_one_at_once(run, tmp_path, stop_at, heeding_ctrl_c):
    stop_at(2, signal.SIGINT)
    assert not run(CONFIG, output=tmp_path).complete
    assert saved(tmp_path, CONFIG)[0] == 2
    with pytest.raises(KeyboardInterrupt):  # what it was before is in place again
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_damaged_checkpoint_costs_its_steps_alone(run, folder, tmp_path, capsys):
    step = folder / "checkpoints" / str(STEPS)
    numbers = max(step.rglob("d/*"), key=lambda path: path.stat().st_size)
    os.truncate(numbers, numbers.stat().st_size // 2)
    longer = dataclasses.replace(CONFIG, steps=STEPS + 3)
    run(longer, output=folder)
    message = capsys.readouterr().err
    assert f"{step} is damaged" in message and f"checkpoints/{STEPS - 2}" in message
    run(longer, output=tmp_path / "whole")
    assert_same_end(folder, tmp_path / "whole", longer)


def test_a_finished_run_can_be_made_longer(run, finished, folder):
    first, _ = finished
    for steps in (0, STEPS):  # nothing is left to do
        again = run(dataclasses.replace(CONFIG, steps=steps), output=folder)
        assert again.complete and int(again.run.state.step) == STEPS
        for name, value in first.run.state.learn.items():
            np.testing.assert_array_equal(value, again.run.state.learn[name])
    longer = run(dataclasses.replace(CONFIG, steps=STEPS + 1), output=folder)
    assert int(longer.run.state.step) == STEPS + 1


def test_another_configuration_is_refused_with_the_difference(run, folder):
    stage = RRDBStage(blocks=(0,))
    other = dataclasses.replace(CONFIG, seed=1, stage=stage)
    with pytest.raises(UserError, match="seed is 0 there, 1 now; stage.blocks is"):
        run(other, output=folder)


def test_other_data_are_refused(run, folder, tmp_path):
    for name in [*names_for("train", 2), *names_for("validation", 1)]:
        save(tmp_path / "other" / name, picture(40, 32))
    with pytest.raises(UserError, match="number of images was 9, is 2"):
        run(CONFIG, data=tmp_path / "other", output=folder)


def test_a_loss_that_is_no_number_stops_before_it_is_saved(run, tmp_path):
    config = config_of(save_every=1, keep=9, optimizer={"learning_rate": 1e30, "warmup": 0})
    with pytest.raises(UserError, match=r"the loss is (nan|inf).* at step 2, nothing") as error:
        run(config, output=tmp_path)
    assert str(tmp_path / "checkpoints" / "1") in str(error.value) and "\n" not in str(error.value)
    step, found = saved(tmp_path, config)
    assert step == 1
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(found.state))


def test_what_is_recorded(finished):
    _, folder = finished
    train_lines = lines(folder, "train")
    assert [entry["step"] for entry in train_lines] == [2, 4, 6]
    assert {"loss", "psnr", "grad_norm", "rate"} < train_lines[0].keys()
    reports = lines(folder, "validation")
    assert [entry["step"] for entry in reports] == [0, 3, 6]
    assert all(0 < r["ssim_y"] <= 1 and r["psnr_y"] > 0 for r in reports)
    assert reports[-1]["loss"] < reports[0]["loss"]
    for step in (0, 3, 6):
        with Image.open(folder / "pictures" / f"{step}.png") as grid:
            assert grid.size == (3 * 16, IMAGES * 16)
    assert list((folder / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.parametrize("stage", ["vae", "prior", "dossr"])
def test_validation_of_a_stage(run, tmp_path, stage):
    run(config_of(stage, steps=1, validate_every=1), output=tmp_path)
    first, last = lines(tmp_path, "validation")
    losses = [value for name, value in first.items() if name.startswith("loss_t")]
    if stage == "vae":
        assert not losses
    else:
        assert len(losses) == 5 and first["loss"] == pytest.approx(np.mean(losses))
    assert first.keys() == last.keys() and np.isfinite([*last.values()][2:]).all()


def test_buckets_cover_the_times_of_the_stage():
    prior = bucket_times(config_of("prior"), 200)
    np.testing.assert_array_equal(np.concatenate([*prior.values()]), np.arange(1000))
    assert list(prior)[0] == "loss_t0-199"
    visited = bucket_times(config_of("dossr", times="visited"), 100)
    np.testing.assert_array_equal(np.concatenate([*visited.values()]), np.arange(500))
    start = bucket_times(config_of("dossr", times="first"), 3)
    assert list(start) == ["loss_t499-499"] and (start["loss_t499-499"] == 499).all()
    assert bucket_times(config_of("vae"), 3) == {}


def test_the_record_loses_what_is_to_come_again(tmp_path):
    """Lines after the step a run sets in at go, so does one that was cut short."""
    config = config_of()
    with Journal(tmp_path, config, 0, False) as journal:
        for step in (2, 4, 6):
            journal.log(step, {"loss": 1 / step}, 0.0)
            journal.validation(step, {"loss": 0.1}, np.zeros((4, 4, 3), np.uint8))
    path = tmp_path / METRICS_FILE
    everything = path.read_text().splitlines(keepends=True)
    path.write_text("".join(everything)[:-5])
    for step, validated, kept in ((6, True, 5), (4, True, 4), (4, False, 3), (3, False, 2)):
        with Journal(tmp_path, config, step, validated):
            pass
        assert path.read_text() == "".join(everything[:kept])
