"""What takes longest in a trace of jax.profiler."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

# They hold other operations, whose time would count twice.
_HOLDERS = re.compile(r"(while|cond|conditional|call)[.\d]*$")
_NUMBER = re.compile(r"([.:]\d+)+$")


def top_kernels(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """The kernels that take longest in the newest trace of a folder, the longest first.

    Those that differ by a number in their name alone count as one. Per kernel: name, runs, seconds
    (of all threads or streams together), share of all kernels.
    """
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    runs: dict[str, int] = collections.defaultdict(int)
    for event in _kernels(ProfileData.from_file(str(newest))):
        name = _NUMBER.sub("", event.name)
        seconds[name] += event.duration_ns / 1e9
        runs[name] += 1
    total = sum(seconds.values())
    longest = sorted(seconds, key=lambda name: -seconds[name])[:count]
    return [
        {
            "name": name,
            "runs": runs[name],
            "seconds": round(seconds[name], 6),
            "share": round(seconds[name] / total, 3),
        }
        for name in longest
    ]


def _kernels(data: ProfileData) -> Iterator[Any]:
    """Events of what devices ran: a GPU's streams, a TPU's operations, the threads of a CPU."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or [line for line in lines if line.name == "XLA Ops"]:
            yield from line.events
    if devices:
        return
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                operation = any(name == "hlo_op" for name, _ in event.stats)
                if operation and not _HOLDERS.match(event.name):
                    yield event
