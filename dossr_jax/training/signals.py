"""Stopping at the end of a step when SIGTERM or Ctrl-C arrives, all processes at the same one."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest(contextlib.AbstractContextManager):
    """Inside this context the first of these signals requests a stop; the second stops at once.

    With several processes, JAX notices SIGTERM in any of them and its coordination service names
    the step that all can still reach; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self._asked = False
        self._together = jax.process_count() > 1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            # JAX installs its own handler where processes are joined.
            if not (self._together and number == signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`. Ask after every step, in every process."""
        if self._together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, self._before[signal.Signals(number)])
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
