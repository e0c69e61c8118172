"""What a run records and tells of its tasks: lines of the manifest and of the screen, and a bar."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from dossr_jax.folder.manifest import Record
from dossr_jax.folder.planning import Task

_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@dataclasses.dataclass
class Outcome:
    """What became of a run: seconds of every result, and the inputs that failed."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    failed: list[Path] = dataclasses.field(default_factory=list)

    def add(self, task: Task, record: Record) -> None:
        """Count a task that is done."""
        if record.status == "failed":
            self.failed.append(task.input.path)
        else:
            self.seconds.append(record.seconds)


class Progress:
    """Records the tasks that are done and says so, a line for each; a context that shows the bar.

    Attributes:
      outcome: of the tasks that are done.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        folder: Path,
        put: Callable[[Record], None],
        *,
        bar: bool = True,
    ):
        """`put` records, `folder` is that of the results, and `bar` whether to show one."""
        self.outcome = Outcome()
        self._folder = folder
        self._put = put
        self._count = sum(task.action in ("restore", "impossible") for task in tasks)
        # The pixels of results, not files, take the time.
        total = sum(task.pixels for task in tasks if task.action == "restore")
        self._bar = tqdm(total=total or None, bar_format=_BAR, dynamic_ncols=True, disable=not bar)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def done(self, task: Task, record: Record) -> None:
        """Record a task with its last record, and tell what became of it.

        Raises:
          UserError: it cannot be recorded.
        """
        self._put(record)
        self.outcome.add(task, record)
        if record.status == "failed":
            self._bar.write(f"error: {record.notes[0]}", file=sys.stderr)
        else:
            sides = f"{record.width}x{record.height}"
            self._bar.write(f"{self._folder / task.target}  {sides}  {record.seconds:.1f} s")
            for note in record.notes:
                self._bar.write(f"note: {task.input.path}: {note}")
        done = len(self.outcome.seconds) + len(self.outcome.failed)
        self._bar.set_description_str(f"{done} of {self._count} ", refresh=False)
        if task.action == "restore":
            self._bar.update(task.pixels)
