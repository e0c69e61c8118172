"""The tasks of a run, shared among processes."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from dossr_jax.folder.planning import Task


def share_out(tasks: Sequence[Task], processes: int) -> list[list[Task]]:
    """A list for every process of what is to be done, about equal in pixels of results.

    The largest go first, each to the process that has least; where sizes are unknown, the median
    of the others stands for them. Depends on its arguments alone; orders are kept.
    """
    todo = [task for task in tasks if task.action in ("restore", "impossible")]
    known = [task.pixels for task in todo if task.pixels]
    usual = statistics.median(known) if known else 1
    costs = [0 if task.action == "impossible" else task.pixels or usual for task in todo]
    owners = [0] * len(todo)
    loads = [0.0] * processes
    for index in sorted(range(len(todo)), key=lambda i: -costs[i]):
        owner = owners[index] = loads.index(min(loads))
        loads[owner] += costs[index]
    return [[t for t, o in zip(todo, owners, strict=True) if o == i] for i in range(processes)]


def elsewhere(task: Task) -> Task:
    """The same for a process with another working directory."""
    path, eta_map = task.input.path.absolute(), task.eta_map
    if eta_map is not None:
        eta_map = dataclasses.replace(eta_map, path=eta_map.path.absolute())
    item = dataclasses.replace(task.input, path=path)
    return dataclasses.replace(task, input=item, eta_map=eta_map)
