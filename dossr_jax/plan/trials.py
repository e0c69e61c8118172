"""Plans of one job at several batch sizes, each in a separate process if asked for.

libtpu's compiler crashes at some batches, and what crashes takes its process along.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

import jax

from dossr_jax.config import DoSSRConfig, TrainConfig
from dossr_jax.plan.chips import Slice, open_slice
from dossr_jax.plan.programs import Program, restore_program, train_program
from dossr_jax.plan.report import Report, crashed, plan


class Job(Protocol):
    """What is planned, but for the number of samples; goes to another process by pickle."""

    def program(self, target: Slice, samples: int) -> Program:
        """The program for this many samples at a time, on the devices of a slice."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """The training step of a configuration."""

    config: TrainConfig

    def program(self, target: Slice, samples: int) -> Program:
        data = dataclasses.replace(self.config.data, batch=samples)
        return train_program(dataclasses.replace(self.config, data=data), target.devices)


@dataclasses.dataclass(frozen=True)
class RestoreJob:
    """Restoring images to `size` x `size` pixels."""

    model: DoSSRConfig
    size: int
    dtype: str

    def program(self, target: Slice, samples: int) -> Program:
        return restore_program(
            self.model, target.devices, images=samples, size=self.size, dtype=self.dtype
        )


def plan_here(job: Job, target: Slice, samples: int, *, quick: bool) -> Report:
    """Plan a job at a number of samples, in this process.

    Raises:
      UserError: the samples do not divide among the devices.
    """
    return plan(job.program(target, samples), target, quick=quick)


def plan_apart(job: Job, target: Slice, samples: int, *, quick: bool) -> Report:
    """Like `plan_here`, in a separate process: a crash of the compiler becomes a refusal."""
    program = job.program(target, samples)  # first, so that bad input ends here
    # A forked copy of a process with JAX's threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(_plan_anew, job, target.topology, samples, quick).result()
        except BrokenProcessPool:
            return crashed(program, target, quick=quick)


def _plan_anew(job: Job, topology: str, samples: int, quick: bool) -> Report:
    jax.config.update("jax_platforms", "cpu")
    return plan_here(job, open_slice(topology), samples, quick=quick)
