"""The tasks of a command line in several processes that were joined."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from dossr_jax import options, parallel
from dossr_jax.engines import Here, check_shared, load
from dossr_jax.errors import BAD_INPUT, UserError
from dossr_jax.folder.manifest import Part, Record
from dossr_jax.folder.planning import Task
from dossr_jax.folder.progress import Outcome, Progress
from dossr_jax.folder.run import Job, Run
from dossr_jax.folder.sharing import elsewhere, share_out
from dossr_jax.pipeline import Upscaler

_PLAN, _READY, _DONE, _STATUS = "dossr/plan", "dossr/ready", "dossr/done", "dossr/status"


class Together(Here):
    """Several processes that were joined, of which this is the first: it plans and keeps the books.

    Each restores its share with its own devices. They send each other: that the others have their
    models (or why not), what each has to do, the records of what each has done, the exit status.
    """

    def __init__(self) -> None:
        self._count = jax.process_count()
        self._planned = False
        self._recorded = False

    def lead(self, command: Callable[[], int]) -> int:
        """Run `command`, which uses this engine, and tell the others its exit status."""
        status = BAD_INPUT
        try:
            status = command()
        finally:
            if not self._planned:
                self._send_plans([None] * self._count)
            parallel.send(_STATUS, (status, self._recorded))
        return status

    def restore(self, tasks: Sequence[Task], job: Job, put: Callable[[Record], None]) -> Outcome:
        for process in range(1, self._count):
            _check(process, parallel.receive(f"{_READY}/{process}"))
        own, *others = share_out(tasks, self._count)
        self._send_plans(
            [None, *((job.elsewhere(), list(map(elsewhere, share))) for share in others)]
        )
        with Progress(own, job.folder, put) as progress:
            Run(self.upscaler, job, put, progress.done).run(own)
        outcome = progress.outcome
        for process, share in enumerate(others, 1):
            records = _check(process, parallel.receive(f"{_DONE}/{process}"))
            for task in share:
                record = records[task.target.as_posix()]
                put(record)
                outcome.add(task, record)
        self._recorded = True
        return outcome

    def _send_plans(self, plans: Sequence[tuple[Job, list[Task]] | None]) -> None:
        self._planned = True
        for process, plan in enumerate(plans):
            parallel.send(f"{_PLAN}/{process}", plan)


def leads() -> bool:
    """Whether this process is the first."""
    return jax.process_index() == 0


def follow(args: argparse.Namespace) -> int:
    """Be one of the processes that :class:`Together` leads; returns the exit status of all."""
    process = jax.process_index()
    part = None
    try:
        with _telling_failure(f"{_READY}/{process}"):
            upscaler, _ = load(args, options.picture_fields(args))
        parallel.send(f"{_READY}/{process}", None)
        plan = parallel.receive(f"{_PLAN}/{process}")
        if plan is not None:
            with _telling_failure(f"{_DONE}/{process}"):
                part = _do_share(upscaler, process, *plan)
            records = {record.output: record for record in part.records}
            parallel.send(f"{_DONE}/{process}", records)
    except UserError:
        pass  # The first process says it.
    status, recorded = parallel.receive(_STATUS)
    if part is not None and recorded:
        part.remove()
    return status


def _do_share(upscaler: Upscaler, process: int, job: Job, tasks: Sequence[Task]) -> Part:
    check_shared(job)
    part = Part(job.folder, process)
    with part.writing(), Progress(tasks, job.folder, part.put, bar=False) as progress:
        Run(upscaler, job, part.put, progress.done).run(tasks)
    return part


@contextlib.contextmanager
def _telling_failure(name: str) -> Iterator[None]:
    """Send what ends the block: the first process waits for it."""
    try:
        yield
    except BaseException as error:
        parallel.send(name, UserError(str(error) or type(error).__name__))
        raise


def _check(process: int, answer: Any) -> Any:
    if isinstance(answer, UserError):
        raise UserError(f"process {process}: {answer}")
    return answer
