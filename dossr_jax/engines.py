"""Where the tasks of a command line are done: in this process, or in several that were joined."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from dossr_jax import options, parallel
from dossr_jax.errors import BAD_INPUT, UserError
from dossr_jax.folder.manifest import NAME, Part, Record
from dossr_jax.folder.planning import Task
from dossr_jax.folder.progress import Outcome, Progress
from dossr_jax.folder.run import Job, Run
from dossr_jax.folder.sharing import elsewhere, share_out
from dossr_jax.pipeline import Settings, Upscaler

_PLAN, _READY, _DONE, _STATUS = "dossr/plan", "dossr/ready", "dossr/done", "dossr/status"


class Engine(Protocol):
    """What does the tasks of a command line."""

    def prepare(self, args: argparse.Namespace, fields: dict[str, Any]) -> Settings:
        """Get the model of parsed options ready; returns the settings that it makes of `fields`.

        Raises:
          UserError: a model that cannot be loaded, or settings that it cannot have.
        """
        ...

    def restore(self, tasks: Sequence[Task], job: Job, put: Callable[[Record], None]) -> Outcome:
        """Do the tasks and tell so; every record goes to `put`, which may raise a UserError."""
        ...


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags for :func:`join`."""
    group = parser.add_argument_group(
        "several processes",
        "Started once per machine, or per accelerator, with the same arguments, and an output\n"
        "folder that all share; each restores its part. See docs/clusters.md.",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that Slurm, Open MPI, GKE or a TPU slice has started",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="join by hand: a free port of the first process's machine",
    )
    group.add_argument("--processes", type=int, metavar="N", help="by hand: how many there are")
    group.add_argument("--process", type=int, metavar="I", help="by hand: which one, from 0")


def join(args: argparse.Namespace) -> int:
    """Join the processes that parsed options ask for; returns their number.

    Raises:
      UserError: they do not find each other, or there are none.
    """
    by_hand = args.coordinator, args.processes, args.process
    if by_hand == (None, None, None) and not args.distributed:
        return 1
    if by_hand != (None, None, None):
        if None in by_hand:
            raise UserError("give --coordinator, --processes and --process together")
        if not 0 <= args.process < args.processes:
            raise UserError(
                f"process {args.process} of {args.processes}: give a number from 0 to "
                f"{args.processes - 1}"
            )
    # Or else JAX would take SIGTERM for itself, for training to ask about.
    jax.config.update("jax_enable_preemption_service", False)
    if not parallel.initialize_distributed(*by_hand):
        raise UserError(
            "--distributed: neither Slurm, Open MPI, GKE nor a TPU slice has started this process; "
            "leave it out, or give --coordinator, --processes and --process"
        )
    return jax.process_count()


class Here:
    """This process alone, on its devices."""

    upscaler: Upscaler

    def prepare(self, args: argparse.Namespace, fields: dict[str, Any]) -> Settings:
        self.upscaler, settings = load(args, fields)
        return settings

    def restore(self, tasks: Sequence[Task], job: Job, put: Callable[[Record], None]) -> Outcome:
        with Progress(tasks, job.folder, put) as progress:
            Run(self.upscaler, job, put, progress.done).run(tasks)
        return progress.outcome


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


def check_shared(job: Job) -> None:
    """Check that the output folder is the one of the process that keeps the manifest.

    Raises:
      UserError: it is not.
    """
    if not (job.folder / NAME).exists():
        raise UserError(
            f"{job.folder}: not the folder of this name on the first machine; choose an output "
            "folder that all machines share"
        )


def load(args: argparse.Namespace, fields: dict[str, Any]) -> tuple[Upscaler, Settings]:
    """The model of parsed options, and the settings that it makes of `fields`.

    Raises:
      UserError: a model that cannot be loaded, or settings that it cannot have.
    """
    upscaler = options.load(args)
    settings = upscaler.settings(**fields)
    next(upscaler.stream((), settings), None)  # raises for a prompt that the model cannot have
    return upscaler, settings


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
