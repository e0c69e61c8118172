"""Stopping at the end of a step when SIGTERM or Ctrl-C arrives, all processes at the same one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from dossr_jax import commands


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Give a function `reached(step)`: whether to stop after that step, as SIGTERM or Ctrl-C asked.

    Every process calls it before its first step and after every step. A second signal stops the
    process at once, and on a command line the first one does so until the first step is done: that
    is mostly compiled. With several processes, JAX notices SIGTERM in any of them and its
    coordination service names the step that all can still reach; Ctrl-C is passed on to it, from
    the beginning, since the others would wait for a process that ends.
    """
    together = jax.process_count() > 1
    asked = False
    calls = 0
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    def listen() -> None:
        # JAX installs its own handler of SIGTERM where processes are joined.
        for number in (signal.SIGINT,) if together else (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)

    def reached(step: int) -> bool:
        nonlocal calls
        if together:
            return multihost_utils.reached_preemption_sync_point(step)
        calls += 1
        if calls == 1:
            listen()
        elif calls == 2:
            commands.pardoned.update(before)
        return asked

    if together:
        listen()
        commands.pardoned.update(before)
    try:
        yield reached
    finally:
        commands.pardoned.difference_update(before)
        for number, handler in before.items():
            signal.signal(number, handler)
