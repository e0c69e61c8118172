"""Runs of train.py in processes of their own that are killed, or run out of disk."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.distributed_worker import ROOT, environment
from helpers.pictures import names_for, picture, save
from helpers.runs import write_model

from dossr_jax.training.experiments import load_config

pytestmark = pytest.mark.slow

KILLS = 10
STEPS = 160  # ten kills come some dozen steps apart, and all before the end


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Function (output, *arguments) -> a started train.py: real degradation, a data worker."""
    folder = tmp_path_factory.mktemp("start")
    for i, name in enumerate([*names_for("train", 9), *names_for("validation", 1)]):
        save(folder / "photos" / name, picture(48, 40, seed=i))
    init = write_model(folder / "init.safetensors", load_config("tiny").model)
    fixed = ["--config", "tiny", "--data", folder / "photos", "--init", init, "--steps", STEPS]
    for setting in ("save_every=10", "log_every=1", "validate_every=50", "data.workers=1"):
        fixed.append(f"--{setting}")

    def start(output: Path, *arguments, **options) -> subprocess.Popen:
        cache = environment(JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"))
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        return subprocess.Popen(
            [sys.executable, "train.py", *map(str, [*fixed, "--output", output, *arguments])],
            cwd=ROOT,
            env=cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    return start


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output[-4000:]
    return output


def recorded(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.001)


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def wait_for_end(pid: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def whole_ones(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def goes_on(command, folder: Path, step: int) -> None:
    """From this step, past two more checkpoints."""
    finish(command(folder, "--steps", step + 20))
    assert whole_ones(folder)[-2:] == [step + 10, step + 20]
    assert (folder / "model.safetensors").exists()


def test_killed_ten_times_and_resumed_is_the_run_that_was_not(command, tmp_path):
    finish(command(tmp_path / "whole"))
    folder, rng, in_saves = tmp_path / "killed", random.Random(0), 0

    def saving() -> bool:
        return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    for kill in range(KILLS):
        process = command(folder)
        goal = recorded(folder) + rng.randint(1, 12)
        wait_for(lambda goal=goal: recorded(folder) >= goal, process)
        if kill % 2:  # while a checkpoint is being written
            wait_for(saving, process)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, 0.1))
        children = workers_of(process)
        with process:  # closes its output
            process.kill()
        assert process.returncode == -signal.SIGKILL
        in_saves += saving()
        for child in children:  # data workers do not outlive the run
            wait_for_end(child)
    assert in_saves
    print(f"{in_saves} of {KILLS} kills hit a checkpoint being written")
    finish(command(folder))
    record = (folder / "metrics.jsonl").read_bytes()
    assert record == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert record.count(b'"train"') == STEPS
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_sigterm_to_the_whole_process_group_ends_with_a_checkpoint(command, tmp_path):
    """As Slurm and terminals send it: data workers receive it, too."""
    process = command(tmp_path, start_new_session=True)
    wait_for(lambda: recorded(tmp_path) >= 5, process)
    os.killpg(process.pid, signal.SIGTERM)
    output = finish(process)
    assert "stopped at step" in output and not (tmp_path / "model.safetensors").exists()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_there(command, tmp_path):
    """A limit on the size of files does to those who write them what a full disk does."""
    process = command(tmp_path)
    wait_for(lambda: recorded(tmp_path) >= 20, process)
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (150_000, unlimited))
    output = finish(process, status=2)
    error = output.splitlines()[-1]
    assert error.startswith("error: ") and "File too large" in error and "free space" in error
    assert "Traceback" not in output
    kept = whole_ones(tmp_path)
    assert kept and f"whole ones: {', '.join(map(str, kept))}" in error
    goes_on(command, tmp_path, kept[-1])


def test_a_small_disk(command, tmp_path):
    """The real thing, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk])
    if mount.returncode:
        pytest.skip("mounting needs privileges; the test above needs none")
    try:
        output = finish(command(disk / "run", "--keep", "100"), status=2)
        kept = whole_ones(disk / "run")
        assert len(kept) >= 2 and "); whole ones: 0, 10" in output.splitlines()[-1]
        assert "Traceback" not in output
        shutil.copytree(disk / "run", tmp_path / "larger")
        goes_on(command, tmp_path / "larger", kept[-1])
    finally:
        subprocess.run(["umount", disk], check=True)
