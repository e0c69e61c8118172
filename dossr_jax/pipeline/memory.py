"""How much memory is free, and what tells that it was not enough."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dossr_jax.errors import UserError
from dossr_jax.image_io import output_size

# Of what is free; the rest is for results on their way and for what allocators leave between.
_USABLE = 0.9
# A convolution that cuDNN finds no memory to try gives an error of its own.
_LACKING = ("RESOURCE_EXHAUSTED", "Failed to determine best cudnn convolution algorithm")
_M_ARENA_MAX = -8  # of malloc.h
# Control groups, and their files of the limit, the use, and the part of it that is given back.
_GROUPS, _GROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_GROUP_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_GROUP_V2 = "memory.max", "memory.current", "inactive_file"


def is_lack(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    import jax  # here: plans of folders need none

    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and any(
        words in str(error) for words in _LACKING
    )


def usable_memory(device: Any) -> float | None:
    """Bytes that a program may take on a device now; None where nobody knows."""
    if device.platform == "cpu":
        free = free_memory()
    else:
        stats = device.memory_stats() or {}
        free = stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    return None if free is None else _USABLE * free


def needed_memory(compiled: Any) -> int:
    """Bytes that a program takes per device beside its arguments; 0 where unknown."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0


def share_freed_memory() -> None:
    """Let all threads of this process use what any of them has freed, where glibc is its library.

    Otherwise each of XLA's threads keeps what it has freed for itself, up to gigabytes in all.
    Call it before the first computation.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another library, Windows
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def free_memory() -> int | None:
    """Bytes that this process can still get of the machine; None where nobody knows.

    The least of the machine's memory, the limits of control groups (containers), and `ulimit -v`.
    """
    known = [*_of_machine(), *_of_groups(), *_of_process()]
    return max(0, min(known)) if known else None


def _of_machine() -> Iterator[int]:
    with contextlib.suppress(OSError, KeyError, ValueError):
        yield _kilobytes(Path("/proc/meminfo"), "MemAvailable")
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has none of these
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups() -> Iterator[int]:
    """What the group of this process and those around it leave."""
    with contextlib.suppress(OSError):
        for line in _GROUPS_OF_PROCESS.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = _GROUPS / "memory" if controllers else _GROUPS
            limit, use, cached = _GROUP_V1 if controllers else _GROUP_V2
            group = root / place.strip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, KeyError, ValueError):  # "max" is no limit
                    most, used = (int((folder / name).read_text()) for name in (limit, use))
                    lines = (folder / "memory.stat").read_text().splitlines()
                    yield most - used + int(dict(line.split() for line in lines)[cached])
                if folder == root:
                    break


def _of_process() -> Iterator[int]:
    with contextlib.suppress(ImportError, OSError, KeyError, ValueError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            yield most - _kilobytes(Path("/proc/self/status"), "VmSize")


def _kilobytes(path: Path, name: str) -> int:
    """Bytes of an entry, whose file has kB."""
    found = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * int(found[name].split()[0])


def check_memory(height: int, width: int, scale: float, itemsize: int = 1) -> None:
    """Check that the result of a photo fits into the memory of this machine.

    Raises:
      UserError: it does not.
    """
    rows, columns = output_size(height, width, scale)
    needed = 3 * rows * columns * itemsize * 2  # the result, and another of its size as a file
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{width}x{height} pixels are {columns}x{rows} at scale {scale:g}: about "
            f"{needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free; cut the image or "
            "reduce the scale"
        )
