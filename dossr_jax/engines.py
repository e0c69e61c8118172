"""Where the tasks of a command line are done: here, or as dossr_jax.together says."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dossr_jax import options
from dossr_jax.errors import UserError
from dossr_jax.folder.manifest import NAME, Record
from dossr_jax.folder.planning import Task
from dossr_jax.folder.progress import Outcome, Progress
from dossr_jax.folder.run import Job, Run
from dossr_jax.pipeline import Settings
from dossr_jax.pipeline.maps import check_maps

if TYPE_CHECKING:
    from dossr_jax.pipeline import Upscaler


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
    import jax  # here: --help needs none

    from dossr_jax import parallel

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
    if (args.eta_map or args.mask) is not None:
        check_maps(upscaler.system, upscaler.config, settings, mask=args.mask is not None)
    next(upscaler.stream((), settings), None)  # raises for a prompt that the model cannot have
    return upscaler, settings
