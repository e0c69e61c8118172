"""One run on one device, on four of one process, and on two of each of two processes."""

import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.distributed_worker import start_processes
from helpers.pictures import names_for, picture, save
from helpers.runs import write_model

from dossr_jax import weights
from dossr_jax.training.experiments import load_config

# Processes that wait for each other give up when other tests keep the cores from them.
pytestmark = [pytest.mark.slow, pytest.mark.alone]

STEPS = 20
LAYOUTS = {"one": (1, 1, 1), "four": (1, 4, 2), "two by two": (2, 2, 2)}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Function (layout, output, steps) -> started processes of train.py, real degradation."""
    folder = tmp_path_factory.mktemp("start")
    for i, name in enumerate([*names_for("train", 9), *names_for("validation", 1)]):
        save(folder / "photos" / name, picture(48, 40, seed=i))
    init = write_model(folder / "init.safetensors", load_config("tiny").model)
    fixed = ["train.py", "--config", "tiny", "--data", folder / "photos", "--init", init]
    fixed += ["--optimizer.schedule", "constant", "--log-every", "1"]
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # a program for each layout: minutes else
    }

    def start(layout: str, output: Path, steps: int = STEPS, *arguments):
        processes, devices, fsdp = LAYOUTS[layout]
        more = ["--output", output, "--steps", steps, "--parallel.fsdp", fsdp, *arguments]
        return start_processes([*fixed, *more], processes, devices, **variables)

    return start


def finish(processes) -> list[str]:
    outputs = [process.communicate(timeout=1200)[1] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return outputs


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in LAYOUTS}
    for name, folder in folders.items():
        finish(launch(name, folder))
    return folders


@pytest.fixture(scope="module")
def one_step_more(runs, launch, tmp_path_factory):
    """The run on one device, and a step more there."""
    folder = shutil.copytree(runs["one"], tmp_path_factory.mktemp("more") / "one")
    finish(launch("one", folder, STEPS + 1))
    return folder


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def arrays(folder):
    tensors, _ = weights.read_safetensors(folder / "model.safetensors")
    return {name: tensor.load() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", ["four", "two by two"])
def test_losses_and_weights_do_not_depend_on_the_layout(runs, layout):
    one, other = losses(runs["one"]), losses(runs[layout])
    assert len(one) == STEPS and len(set(one)) == STEPS
    np.testing.assert_allclose(other, one, rtol=1e-5)
    theirs = arrays(runs[layout])
    for name, value in arrays(runs["one"]).items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(LAYOUTS, 2)))
def test_a_checkpoint_goes_on_in_every_other_layout(
    runs, one_step_more, launch, tmp_path, before, after
):
    folder = shutil.copytree(runs[before], tmp_path / "run")
    finish(launch(after, folder, STEPS + 1))
    assert len(losses(folder)) == STEPS + 1
    np.testing.assert_allclose(losses(folder), losses(one_step_more), rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_process_stops_both_at_one_step(launch, runs, tmp_path, receiver, number):
    processes = launch("two by two", tmp_path, 100_000, "--validate-every", "0")
    record = tmp_path / "metrics.jsonl"
    while not record.exists() or record.read_bytes().count(b"\n") < 5:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)
    os.kill(processes[receiver].pid, number)
    output, _ = finish(processes)
    last = len(losses(tmp_path))
    assert f"stopped at step {last}" in output
    assert (tmp_path / "checkpoints" / str(last) / "files.json").exists()
    assert not (tmp_path / "model.safetensors").exists()
