"""Metrics between log lines, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax import Array

from dossr_jax.checkpoint import Checkpoints, Managed
from dossr_jax.errors import UserError


class Meter:
    """Metrics of the steps since the last log line, and the check for NaN and infinity.

    A step's metrics are read while the next step runs: the device never waits, and errors are
    noticed one step later.
    """

    def __init__(self, checkpoints: Checkpoints | Managed, recent: Sequence[dict[str, float]]):
        self._checkpoints = checkpoints
        self._pending: tuple[int, dict[str, Array]] | None = None
        self.recent = list(recent)

    def settle(self, started: tuple[int, dict[str, Array]] | None = None) -> None:
        """Wait for the last step, so that `recent` has it; `started`: the one that runs now.

        Raises:
          UserError: the last step's loss or gradient is not finite.
        """
        pending, self._pending = self._pending, started
        if pending is None:
            return
        step, metrics = pending
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            self._checkpoints.wait()
            good = self._checkpoints.steps()[-1:]
            place = self._checkpoints.path(*good) if good else "none"
            raise UserError(
                f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at "
                f"step {step}, nothing of it is saved; the last good checkpoint is {place}: resume "
                "from it with --parallel.dtype float32, or export it (--steps 0 --export FILE) and "
                "start another run from that file (--init FILE) with a lower "
                "--optimizer.learning-rate"
            )
        self.recent.append(values)

    def means(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        self.settle()
        recent, self.recent = self.recent, []
        return {name: math.fsum(r[name] for r in recent) / len(recent) for name in recent[0]}
