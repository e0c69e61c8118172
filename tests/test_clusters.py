"""Several processes restore a folder: every photo once, with the bytes that one process gives."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers.distributed_worker import ROOT, environment, run_python, start_processes
from helpers.models import tiny_model
from helpers.pictures import picture, save

from dossr_jax import systems

# Processes that wait for each other give up when other tests keep the cores from them.
pytestmark = [pytest.mark.slow, pytest.mark.alone]

LISTED = "dossr.jsonl"
BROKEN = "broken.png"
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("clusters")


@pytest.fixture(scope="module")
def album(place):
    """Photos of several sizes, one in a subfolder, and a file that is none."""
    names = ["a.png", "b.png", "once_c.png", "d.png", "e.png", "f.png", "sub/g.png"]
    for i, name in enumerate(names):
        save(place / "album" / name, picture(12 + 2 * i, 16, seed=i))
    (place / "album" / BROKEN).write_bytes(b"no photo")
    return place / "album"


@pytest.fixture(scope="module")
def arguments(place):
    """Of every run: a model that samples; batches of another size may round otherwise."""
    model = place / "tiny.safetensors"
    systems.save_model(model, tiny_model())
    return ["--model", model, "--steps", "2", "--seed", "5", "--tile", "128", "--batch-size", "1"]


@pytest.fixture(scope="module")
def whole(album, arguments, place):
    """What one process makes of the album."""
    out = place / "whole"
    (process,) = start_processes(["infer.py", album, "-o", out, *arguments], 1, 1, **QUICK)
    assert_only_broken(process)
    return out


def assert_only_broken(*processes):
    """All end with status 2, and together they give one error, that of the broken file."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2] * len(processes), errors
    lines = "\n".join(errors).replace("\r", "\n").splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert BROKEN in line


def tree(folder):
    """Everything in a folder: name -> content; of the manifest, what does not tell of the time."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    records = [json.loads(line) for line in found.pop(LISTED).splitlines()]
    for record in records:
        record["seconds"] = 0
        record["input"] = os.path.realpath(folder / record["input"])
    return found, records


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


# Processes that jax.distributed joins


def test_two_processes_restore_every_photo_once_as_one_does(album, arguments, whole, tmp_path):
    command = ["infer.py", album, "-o", tmp_path, *arguments, "--distributed"]
    assert_only_broken(*start_processes(command, 2, 1, **QUICK))
    assert tree(tmp_path) == tree(whole)


def test_one_process_goes_on_where_two_were_stopped(arguments, tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    for i in range(40):
        save(album / f"{i:02}.png", picture(16, 16, seed=i))
    command = ["infer.py", album, "-o", out, *arguments]
    by_hand = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    variables = {**QUICK, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        *start_processes([*command, *by_hand, "0"], 1, 1, **variables),
        *start_processes([*command, *by_hand, "1"], 1, 1, **variables),
    ]
    part = out / "dossr.1.jsonl"
    while not part.exists() or part.read_bytes().count(b"restored") < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    first, second = processes
    second.send_signal(signal.SIGKILL)
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=10)[1].splitlines()[-1].startswith("stopped")
    assert first.returncode == 143
    second.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (process,) = start_processes(command, 1, 1, **QUICK)
    assert process.communicate(timeout=300) and process.returncode == 0
    kept = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
    assert len(kept) >= len(before) - 2  # one of each process may lack its last line
    files, records = tree(out)
    assert len(files) == len(records) == 40
    assert {record["status"] for record in records} == {"restored"}


def test_what_one_process_lacks_ends_all_in_one_line(album, arguments, tmp_path):
    """Here its model; the output folder stays as it was."""
    out, model = tmp_path / "out", tmp_path / "model.safetensors"
    shutil.copy(arguments[1], model)
    fixed = ["infer.py", album, "-o", out, *arguments, "--distributed", "--model"]
    variables = {**QUICK, "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    variables |= {"JAX_NUM_PROCESSES": "2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, [*fixed, path])],
            cwd=ROOT,
            env=environment(1, JAX_PROCESS_ID=str(i), **variables),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, path in enumerate((model, tmp_path / "none.safetensors"))
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert errors[0].splitlines()[-1].startswith("error: process 1: ")
    assert "none.safetensors" in errors[0] and "error" not in errors[1]
    assert not list(out.rglob("*.png"))


# Ray


def start_ray(*command, cwd=ROOT):
    """A process with a cluster of its own on two cores, and a worker on each."""
    two = ["--address", "local", "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, *map(str, [*command, *two])],
        cwd=cwd,
        env=environment(1, **QUICK),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def deadly(tmp_path, retries, *command, **options):
    marks = tmp_path / "marks"
    marks.mkdir(exist_ok=True)
    return start_ray(ROOT / "tests/helpers/deadly_ray.py", marks, retries, *command, **options)


def test_ray_restores_every_photo_once_though_a_worker_is_killed(album, arguments, whole, tmp_path):
    out = tmp_path / "out"
    assert_only_broken(deadly(tmp_path, 1, album, "-o", out, *arguments))
    assert (tmp_path / "marks" / "once_c.png").exists()
    assert tree(out) == tree(whole)


def test_a_photo_that_kills_every_worker_is_the_only_one_that_is_not_restored(arguments, tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    for i, name in enumerate(["a.png", "always_b.png", "c.png", "d.png"]):
        save(album / name, picture(16, 16, seed=i))
    process = deadly(tmp_path, 0, "album", "-o", "out", *arguments, cwd=tmp_path)
    error = process.communicate(timeout=300)[1].replace("\r", "\n")
    assert process.returncode == 2, error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "always_b.png" in line and "worker died" in line
    files, records = tree(out)
    assert set(files) == {"a.png", "c.png", "d.png"}
    assert [record["status"] for record in records] == [
        "restored",
        "failed",
        "restored",
        "restored",
    ]


DATASET = """
import io, logging, sys
import numpy as np
import ray
from PIL import Image
import dossr_jax
from dossr_jax.ray import restore_dataset

ray.init("local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
rng = np.random.default_rng(0)
rows = []
for height in (8, 12):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, 16, 3)).astype(np.uint8)).save(file, "png")
    rows.append({"bytes": file.getvalue(), "name": str(height)})
rows.append({"bytes": b"no photo", "name": "broken"})
settings = {"scale": 2.5, "steps": 2, "seed": 3}
dataset = ray.data.from_items(rows, override_num_blocks=2)
restored = restore_dataset(dataset, "bytes", sys.argv[1], tile=128, workers=2, **settings)
upscaler = dossr_jax.Upscaler.from_pretrained(sys.argv[1], tile=128)
found = {row["name"]: row for row in restored.take_all()}
assert len(found) == 3
broken = found.pop("broken")
assert broken["restored"].shape == (0, 0, 3) and broken["restored_error"]
for row in found.values():
    np.testing.assert_array_equal(row["restored"], upscaler.restore(row["bytes"], **settings))
    assert row["restored_error"] == ""
try:
    restore_dataset(dataset, "image", sys.argv[1])
except dossr_jax.UserError as error:
    assert "'image'" in str(error) and "bytes, name" in str(error)
else:
    raise AssertionError
"""


def test_a_ray_dataset_has_the_results_of_an_upscaler(arguments):
    run_python(DATASET, arguments[1])


@pytest.mark.parametrize("address", ["auto", "ray://localhost:1"])
def test_a_cluster_that_is_not_there_is_one_line(album, tmp_path, address):
    command = ["-m", "dossr_jax.ray", album, "-o", tmp_path / "out", "--address", address]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(RAY_ADDRESS="localhost:1"),  # "auto" looks there
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: --address {address}: ") and "localhost:1" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_on_ray_can_be_stopped(album, arguments, tmp_path, number, status):
    out = tmp_path / "out"
    process = start_ray("-m", "dossr_jax.ray", album, "-o", out, *arguments)
    while not (out / LISTED).exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=10)[1]
    assert process.returncode == status
    assert error.splitlines()[-1].startswith("stopped") and "Traceback" not in error
