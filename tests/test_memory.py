"""Free memory: the least of what the machine, containers and the process have."""

import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from dossr_jax.errors import UserError
from dossr_jax.pipeline import memory

GB = 10**9


def test_the_machine_tells_what_is_free():
    free = memory.free_memory()
    assert free is not None and 10**7 < free < 10**13


@pytest.mark.parametrize(
    ("line", "folder", "names", "cached"),
    [
        ("0::/a/b", "", ("memory.max", "memory.current"), "inactive_file"),
        (
            "4:memory:/a/b",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    ],
)
def test_a_container_leaves_what_its_group_and_those_around_it_do(
    line, folder, names, cached, tmp_path, monkeypatch
):
    root = tmp_path / folder
    (root / "a/b").mkdir(parents=True)
    for group, limit in {root / "a": "6000", root / "a/b": "max"}.items():
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text("2500\n")
        (group / "memory.stat").write_text(f"anon 1\n{cached} 1000\n")
    own = tmp_path / "cgroup"
    own.write_text(f"9:name=systemd:/\n{line}\n")
    monkeypatch.setattr(memory, "_GROUPS_OF_PROCESS", own)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert list(memory._of_groups()) == [4500]
    monkeypatch.setattr(memory, "_of_machine", lambda: [GB])
    monkeypatch.setattr(memory, "_of_process", lambda: [])
    assert memory.free_memory() == 4500


def test_a_limit_of_the_process_counts(monkeypatch):
    used = memory._kilobytes(Path("/proc/self/status"), "VmSize")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + GB, -1))
    (left,) = memory._of_process()
    assert left == pytest.approx(GB, abs=GB // 4)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, -1))
    assert list(memory._of_process()) == []


def test_a_device_tells_what_its_allocator_has_left():
    stats = {"bytes_limit": 16 * GB, "bytes_in_use": 6 * GB}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert memory.usable_memory(device) == pytest.approx(9 * GB)
    assert memory.usable_memory(SimpleNamespace(platform="tpu", memory_stats=lambda: None)) is None
    assert memory.usable_memory(jax.devices("cpu")[0]) > 0


def test_results_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 6 * 400 * 400)
    memory.check_memory(100, 100, 4)
    for size, itemsize in ((101, 1), (100, 2)):
        with pytest.raises(UserError, match="cut the image"):
            memory.check_memory(size, size, 4, itemsize)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    memory.check_memory(10**6, 10**6, 4)


@pytest.mark.parametrize("error", [MemoryError(), "RESOURCE_EXHAUSTED: x", "INTERNAL: x"])
def test_a_lack_of_memory_is_told_from_other_errors(error):
    if isinstance(error, str):
        error = jax.errors.JaxRuntimeError(error)
    assert memory.is_lack(error) == ("INTERNAL" not in str(error))
    assert not memory.is_lack(ValueError("RESOURCE_EXHAUSTED"))
