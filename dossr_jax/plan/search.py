"""The largest batch that fits: memory grows nearly linearly with it, so few compiles find it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

from dossr_jax.plan.report import Report

_MOST_TRIALS = 6


@dataclasses.dataclass(frozen=True)
class Found:
    """`largest` is 0 where not even the smallest batch fits; `tried` maps batch to report."""

    largest: int
    tried: Mapping[int, Report]


def largest_batch(compiled: Callable[[int], Report], first: Report, unit: int) -> Found:
    """Search multiples of `unit` for the largest batch that fits.

    Two compiles give a line, its crossing with the capacity a guess, and one more a check. A
    batch at which the compiler crashes says nothing about others: its neighbours are tried.

    Args:
      compiled: plans a batch. first: its report at some batch.
      unit: what batches are multiples of.
    """
    tried = {first.samples: first}
    while len(tried) < _MOST_TRIALS:
        low = max((n for n, r in tried.items() if r.fits), default=0)
        high = min((n for n, r in tried.items() if not (r.fits or r.crashed)), default=None)
        guess = _guess(tried, unit) or (2 * low if low else first.samples // 2 // unit * unit)
        # Between the largest that fits and the smallest that does not, if there is one.
        guess = max(guess, low + unit)
        if high is not None:
            guess = min(guess, high - unit)
        least = max(guess, low + unit)
        above = itertools.count(least, unit) if high is None else range(least, high, unit)
        batch = next(
            (n for n in itertools.chain(range(guess, low, -unit), above) if n not in tried), None
        )
        if batch is None:
            break
        tried[batch] = compiled(batch)
    return Found(max((n for n, r in tried.items() if r.fits), default=0), tried)


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
