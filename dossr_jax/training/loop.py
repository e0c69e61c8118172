"""A run from start or resume to its end, in one process or in each of several.

What is logged, validated and saved depends on configuration, data and number of the step alone,
so that an interrupted run ends as an uninterrupted one does, to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.checkpoint import Checkpoints
from dossr_jax.config import TrainConfig
from dossr_jax.data.pipeline import Batches, start_of
from dossr_jax.data.sources import Source, open_source
from dossr_jax.errors import UserError
from dossr_jax.training.journal import Journal
from dossr_jax.training.signals import stop_requests
from dossr_jax.training.state import TrainingRun, abstract_run, start_run
from dossr_jax.training.step import make_train_step
from dossr_jax.training.validation import Validation, fixed_batch

_START_CROPS = 200


class Trained(NamedTuple):
    """How a run ended: its last state is in `run`; `complete` says whether all steps are done."""

    run: TrainingRun
    complete: bool
    source: Source


class _Progress(NamedTuple):
    """Where the loop begins: what is done, and what of it is not yet logged."""

    run: TrainingRun
    step: int = 0
    samples: int = 0
    recent: Sequence[dict[str, float]] = ()
    validated: bool = False


def train(
    config: TrainConfig,
    *,
    data: Path,
    output: Path,
    init: Path | None = None,
    validation: Path | None = None,
) -> Trained:
    """Train until the configuration's last step, SIGTERM or Ctrl-C; then the state is saved.

    Args:
      config: of the run; a folder that holds a run with another one is refused.
      data: images (dossr_jax.data.sources).
      output: folder of the run; one that holds a run is resumed.
      init: model file that a new run starts from.
      validation: images for validation, instead of those that `data` holds out.

    Raises:
      UserError: bad input, a full disk, or a loss that is not finite; complete checkpoints stay
        and are named.
    """
    parallel.initialize_distributed()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        mesh = parallel.make_mesh(config.parallel.fsdp)
        parallel.check_batch(config.data.batch, config.optimizer.microbatches, mesh)
        warn = functools.partial(print, file=sys.stderr)
        checkpoints = stack.enter_context(Checkpoints(output, keep=config.keep, warn=warn))

        # --- data, state, programs
        source = open_source(data, split="train", hold_out=config.data.hold_out)
        held_out = None
        if config.validate_every:
            one_in = 1 if validation else config.data.hold_out  # all of the images given for it
            held_out = open_source(validation or data, split="validation", hold_out=one_in)
        latest = checkpoints.latest()
        if latest is None:
            crops = functools.partial(start_crops, source, config)
            start = _Progress(start_run(config, init, mesh, crops))
        else:
            start = _resume(config, checkpoints, latest, mesh, source)
        asked, (config, graphdef, state) = config, start.run
        if start.step > config.steps or (start.step == config.steps and start.validated):
            return Trained(start.run, True, source)
        train_step = make_train_step(config, graphdef, mesh)
        validate = None if held_out is None else Validation(config, graphdef, mesh, held_out)
        process = jax.process_index(), jax.process_count()
        batches = stack.enter_context(
            Batches(source, config.data, seed=config.seed, start=start.samples, process=process)
        )
        journal = stack.enter_context(Journal(output, config, start.step, start.validated))
        meter = _Meter(checkpoints, start.recent)
        journal.say(_introduction(start, output, mesh, source))

        # --- the loop
        step, validated = start.step, start.validated or validate is None
        while True:
            stopping, last = stop(step), step == config.steps
            due = last or _due(step, config.validate_every)
            if validate and due and not validated and not stopping:
                with journal.aside():
                    journal.validation(step, *validate(state))
                validated = True
            if _due(step, config.save_every) or last or stopping:
                meter.settle()
                log = {"recent": meter.recent, "validated": validated}
                place = batches.state()
                with journal.aside():
                    checkpoints.save(
                        step, state, config=asked, model=config.model, data=place, log=log
                    )
            if last or stopping:
                break
            state, metrics = train_step(state, parallel.put_batch(next(batches), mesh))
            step, validated = step + 1, validate is None
            meter.settle((step, metrics))
            journal.advance(step)
            if step == start.step + 1:  # this step's time was mostly compilation
                meter.settle()
                journal.start_clock(step, batches.waited)
            if _due(step, config.log_every) or step == config.steps:
                journal.log(step, meter.means(), batches.waited)
                checkpoints.check()

        checkpoints.wait()
        journal.say(f"stopped at step {step}" if stopping else f"all {step} steps done")
        journal.say(f"the state is in {checkpoints.path(step)}")
        if batches.skipped:
            journal.say(f"{len(batches.skipped)} images could not be used and were left out")
        return Trained(TrainingRun(config, graphdef, state), step == config.steps, source)


def start_crops(source: Source, config: TrainConfig) -> np.ndarray:
    """Crops (n, h, w, 3) uint8 that an autoencoder's start and its latents' scale come from."""
    return fixed_batch(source, config.data, _START_CROPS)["hr"]


class _Meter:
    """Metrics of the steps since the last log line, and the check for NaN and infinity.

    A step's metrics are read while the next step runs: the device never waits, and errors are
    noticed one step later.
    """

    def __init__(self, checkpoints: Checkpoints, recent: Sequence[dict[str, float]]):
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
            good = self._checkpoints.steps()[-1]
            raise UserError(
                f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at "
                f"step {step}, nothing of it is saved; the last good checkpoint is "
                f"{self._checkpoints.path(good)}: resume from it with "
                "--parallel.dtype float32, or export it (--steps 0 --export FILE) and start "
                "another run from that file (--init FILE) with a lower --optimizer.learning-rate"
            )
        self.recent.append(values)

    def means(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        self.settle()
        recent, self.recent = self.recent, []
        return {name: math.fsum(r[name] for r in recent) / len(recent) for name in recent[0]}


def _resume(
    config: TrainConfig, checkpoints: Checkpoints, step: int, mesh: Mesh, source: Source
) -> _Progress:
    config = checkpoints.resume_config(step, config)
    run = abstract_run(config, mesh)
    saved = checkpoints.restore(step, run.state)
    samples = start_of(saved.data, source, seed=config.seed)
    return _Progress(run._replace(state=saved.state), step, samples, **saved.log)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _introduction(start: _Progress, output: Path, mesh: Mesh, source: Source) -> str:
    count = sum(leaf.size for leaf in start.run.state.learn.values())
    begin = f"resumed at step {start.step}" if start.step else "a new run"
    layout = " x ".join(f"{size} {name}" for name, size in mesh.shape.items())
    return (
        f"{output}: {begin}, stage {start.run.config.stage.name}, {count / 1e6:.1f} M parameters "
        f"learn, {len(source)} images, {mesh.size} {mesh.devices.flat[0].device_kind} devices "
        f"({layout}), {jax.process_count()} processes"
    )
