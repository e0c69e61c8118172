"""The largest batch that fits: memory grows nearly linearly with it, so few compiles find it."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax

from dossr_jax.plan.chips import Slice, open_slice
from dossr_jax.plan.programs import Program
from dossr_jax.plan.report import Report, make_report, plan

_MOST_TRIALS = 6

# Makes the program for a number of samples on some devices; pickled for another process.
Job = Callable[[Sequence[Any], int], Program]


def plan_apart(job: Job, target: Slice, samples: int, *, quick: bool) -> Report:
    """Plan a job in a separate process: a crash of the compiler becomes a refusal.

    libtpu's compiler crashes at some batches, and takes its process along.

    Raises:
      UserError: the samples do not divide among the devices.
    """
    program = job(target.devices, samples)  # first, so that bad input ends here
    # A forked copy of a process with JAX's threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(
                _plan_anew, job, target.topology, target.autotuned, samples, quick
            ).result()
        except BrokenProcessPool:
            reason = "the compiler crashed, or took all of this host's memory"
            report = make_report(program, target, quick)
            return dataclasses.replace(report, crashed=True, refusal=reason)


def _plan_anew(
    job: Job, topology: str, autotuned: Path | None, samples: int, quick: bool
) -> Report:
    jax.config.update("jax_platforms", "cpu")
    target = open_slice(topology, autotuned)
    return plan(job(target.devices, samples), target, quick=quick)


def try_batches(plan_batch: Callable[[int], Report], first: Report, unit: int) -> dict[int, Report]:
    """Search multiples of `unit` for the largest batch that fits.

    Two compiles give a line, its crossing with the capacity a guess, and one more a check. A
    batch at which the compiler crashes says nothing about others: its neighbours are tried.

    Args:
      first: report of any batch, to start from.

    Returns:
      Reports of all batches tried, by batch; see :func:`largest_fit`.
    """
    tried = {first.samples: first}
    while len(tried) < _MOST_TRIALS:
        low = largest_fit(tried)
        high = min((n for n, r in tried.items() if not (r.fits or r.crashed)), default=sys.maxsize)
        guess = _guess(tried, unit) or (2 * low if low else first.samples // 2 // unit * unit)
        # Between the largest that fits and the smallest that does not, if there is one.
        guess = min(max(guess, low + unit), high - unit)
        below, above = range(guess, low, -unit), range(max(guess, low + unit), high, unit)
        batch = next((n for n in itertools.chain(below, above) if n not in tried), None)
        if batch is None:
            break
        tried[batch] = plan_batch(batch)
    return tried


def largest_fit(tried: Mapping[int, Report]) -> int:
    """The largest batch that fits, 0 if none does."""
    return max((n for n, r in tried.items() if r.fits), default=0)


def _guess(tried: Mapping[int, Report], unit: int) -> int | None:
    """Where the line through the two largest batches of known memory meets the capacity."""
    known = sorted((n, r.memory) for n, r in tried.items() if r.memory is not None)[-2:]
    if len(known) < 2:
        return None
    (n0, m0), (n1, m1) = known
    if m1 <= m0:
        return None
    usable = next(iter(tried.values())).usable
    return int((n0 + (usable - m0) * (n1 - n0) / (m1 - m0)) // unit * unit)
