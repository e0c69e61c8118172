"""Who restores what, among processes and on a Ray cluster, and what is refused beforehand."""

import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from dossr_jax import cli, parallel
from dossr_jax.errors import UserError
from dossr_jax.folder.finding import Input
from dossr_jax.folder.planning import Task
from dossr_jax.folder.sharing import share_out
from dossr_jax.ray.__main__ import main as main_of_ray
from dossr_jax.ray.cluster import Workers, choose_workers
from dossr_jax.ray.engine import tasks_at_a_time


def task(name, pixels=0, action="restore"):
    size = (pixels, 1) if pixels else None
    return Task(Input(Path(name), Path(name)), Path(name), (), action, size=size)


actions = st.sampled_from(["restore", "impossible", "unchanged", "kept"])
albums = st.lists(st.tuples(st.integers(0, 10**8), actions), max_size=30)


@hypothesis.given(albums, st.integers(1, 9))
def test_every_task_is_done_by_one_process_and_none_has_much_more_than_another(album, processes):
    tasks = [task(str(i), pixels, action) for i, (pixels, action) in enumerate(album)]
    shares = share_out(tasks, processes)
    assert len(shares) == processes
    order = {t: i for i, t in enumerate(tasks)}
    assert all(share == sorted(share, key=order.__getitem__) for share in shares)
    done = sorted((t for share in shares for t in share), key=order.__getitem__)
    assert done == [t for t in tasks if t.action in ("restore", "impossible")]
    todo = [t.pixels for t in done if t.action == "restore"]
    if all(todo):
        loads = [sum(t.pixels for t in share if t.action == "restore") for share in shares]
        assert max(loads) - min(loads) <= max(todo, default=0)


def test_photos_of_unknown_size_count_as_the_usual_one():
    tasks = [task("a", 10), task("raw"), task("b", 10), task("large", 30)]
    assert [len(share) for share in share_out(tasks, 2)] == [1, 3]


NODE = {"CPU": 8.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "asked", "workers"),
    [
        ([NODE, NODE], ("auto", None, None), (2, "cpu", 8)),
        ([NODE], ("auto", None, 2), (2, "cpu", 4)),
        ([NODE | {"CPU": 6.0}, NODE | {"CPU": 2.0}], ("auto", None, 2), (2, "cpu", 3)),
        ([NODE], ("auto", None, 100), (100, "cpu", 1)),
        ([NODE, NODE | {"GPU": 4.0}], ("auto", None, None), (4, "gpu", 1)),
        ([NODE | {"GPU": 4.0}, NODE | {"GPU": 3.0}], ("gpu", 2, None), (3, "gpu", 2)),
        ([NODE | {"GPU": 4.0}], ("cpu", None, None), (1, "cpu", 8)),
        ([NODE | {"TPU": 4.0}, NODE | {"TPU": 4.0}], ("auto", None, None), (2, "tpu", 4)),
        ([NODE | {"TPU": 8.0}], ("tpu", 1, 3), (3, "tpu", 1)),
        ([NODE], ("gpu", None, None), (1, "gpu", 1)),  # it may come: clusters grow
    ],
)
def test_workers_are_as_many_as_the_nodes_have_accelerators_for(nodes, asked, workers):
    assert choose_workers(nodes, *asked) == Workers(*workers)


def test_workers_reserve_what_they_use():
    assert Workers(2, "cpu", 4).resources == {"num_cpus": 4}
    assert Workers(2, "gpu", 1).resources == {"num_cpus": 0, "num_gpus": 1}
    assert Workers(2, "tpu", 4).resources == {"num_cpus": 0, "resources": {"TPU": 4}}


@pytest.mark.parametrize(
    ("tasks", "workers", "batch_size", "at_a_time"),
    [(1, 1, 1, 1), (7, 2, 1, 1), (40, 2, 1, 5), (10**6, 2, 1, 8), (7, 2, 4, 4), (10**6, 2, 4, 32)],
)
def test_a_worker_gets_whole_batches_and_comes_back_often(tasks, workers, batch_size, at_a_time):
    assert tasks_at_a_time(tasks, workers, batch_size) == at_a_time


@pytest.fixture
def alone(monkeypatch):
    """No cluster has started this process."""
    for name in parallel._CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--distributed"], "Slurm"),
        (["--coordinator", "localhost:1"], "--processes"),
        (["--processes", "2", "--process", "0"], "--coordinator"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "process 2 of 2"),
    ],
)
def test_processes_that_cannot_be_joined_are_one_line(alone, tmp_path, capsys, flags, words):
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "out"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_a_job_of_one_task_has_no_others_to_wait_for(alone, monkeypatch):
    assert parallel.initialize_distributed() is False
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert parallel.initialize_distributed() is True


def test_ray_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main_of_ray([str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'dossr-jax[ray]'" in capsys.readouterr().err


def test_workers_are_counted_from_one(tmp_path, capsys):
    assert main_of_ray([str(tmp_path), "-o", str(tmp_path), "--workers", "0"]) == 2
    assert "workers 0" in capsys.readouterr().err


def test_a_worker_without_the_accelerator_that_it_was_given_says_so():
    with pytest.raises(UserError, match="cuda"):
        Workers(1, "gpu", 1).check_devices()
