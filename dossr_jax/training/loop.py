"""A run from start or resume to its end, in one process or in each of several.

What is logged, validated and saved depends on configuration, data and number of the step alone,
so that an interrupted run ends as an uninterrupted one does, to the last bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dossr_jax import files, parallel
from dossr_jax.checkpoint import Checkpoints, Managed
from dossr_jax.config import StageConfig, TrainConfig
from dossr_jax.data.own import RandomAccess, as_source
from dossr_jax.data.pipeline import Batches, start_of
from dossr_jax.data.sources import Source, open_source
from dossr_jax.training.journal import Journal
from dossr_jax.training.meter import Meter
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
    """:func:`fit` on the images of a folder or a data set.

    Args:
      config: of the run; a folder that holds a run with another one is refused.
      data: images (dossr_jax.data.sources).
      output, init: as for `fit`.
      validation: images for validation, instead of those that `data` holds out.
    """
    source = open_source(data, split="train", hold_out=config.data.hold_out)
    held_out = None
    if config.validate_every:
        one_in = 1 if validation else config.data.hold_out  # all of the images given for it
        held_out = open_source(validation or data, split="validation", hold_out=one_in)
    return fit(config.stage, source, config=config, output=output, init=init, validation=held_out)


def fit(
    stage: StageConfig,
    source: Source | RandomAccess,
    *,
    config: TrainConfig | None = None,
    steps: int | None = None,
    output: str | Path | None = None,
    init: str | Path | None = None,
    validation: Source | RandomAccess | None = None,
    tx: optax.GradientTransformation | None = None,
    manager: ocp.CheckpointManager | None = None,
) -> Trained:
    """Train until the last step, SIGTERM or Ctrl-C; then the state is saved.

    Args:
      stage: what is trained, in place of `config.stage`.
      source: images: of dossr_jax.data.sources, or anything with a length whose items are HR images
        (h, w, 3) uint8 or dicts with `hr` and optionally `lr`, `pre` and `name`, such as a
        grain.MapDataset.
      config: everything else; by default that of SD 2.1 on one device.
      steps: length of the whole run, in place of `config.steps`.
      output: folder of checkpoints, logs and pictures; one that holds a run is resumed. Without
        one nothing is written but by `manager`.
      init: model file that a new run starts from; random weights without.
      validation: images for validation; none without.
      tx: optimizer in place of `config.optimizer`, of which only `microbatches` and `ema_decay`
        count then. Parameters are a flat dict by dotted name. Resume with the same one.
      manager: writes the checkpoints in place of `output`, when its own options say, and at the
        end; what it holds is resumed. It is not closed.

    Raises:
      UserError: bad input, a full disk, or a loss that is not finite; complete checkpoints stay
        and are named.
    """
    config = dataclasses.replace(config or TrainConfig(stage=stage), stage=stage)
    config = config if steps is None else dataclasses.replace(config, steps=steps)
    source, output = as_source(source), None if output is None else Path(output)
    parallel.initialize_distributed()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        mesh = parallel.make_mesh(config.parallel.fsdp)
        parallel.check_batch(config.data.batch, config.optimizer.microbatches, mesh)
        warn = functools.partial(print, file=sys.stderr)
        if output is not None:
            files.check_folder(output)
            output.mkdir(parents=True, exist_ok=True)
        if manager is None and output is not None:
            checkpoints = Checkpoints(output, keep=config.keep, warn=warn)
        else:
            checkpoints = Managed(manager)
        stack.enter_context(checkpoints)

        # --- state, programs
        held_out = as_source(validation) if validation and config.validate_every else None
        latest = checkpoints.latest()
        if latest is None:
            crops = functools.partial(start_crops, source, config)
            first = None if init is None else Path(init)
            start = _Progress(start_run(config, first, mesh, crops, tx))
        else:
            start = _resume(config, checkpoints, latest, mesh, source, tx)
        asked, (config, graphdef, state) = config, start.run
        if start.step > config.steps or (start.step == config.steps and start.validated):
            return Trained(start.run, True, source)
        train_step = make_train_step(config, graphdef, mesh, tx)
        validate = None if held_out is None else Validation(config, graphdef, mesh, held_out)
        process = jax.process_index(), jax.process_count()
        batches = stack.enter_context(
            Batches(source, config.data, seed=config.seed, start=start.samples, process=process)
        )
        journal = stack.enter_context(Journal(output, config, start.step, start.validated))
        meter = Meter(checkpoints, start.recent)
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
            if checkpoints.due(step, config.save_every) or last or stopping:
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
        if folder := checkpoints.path(step):
            journal.say(f"the state is in {folder}")
        if batches.skipped:
            journal.say(f"{len(batches.skipped)} images could not be used and were left out")
        return Trained(TrainingRun(config, graphdef, state), step == config.steps, source)


def start_crops(source: Source, config: TrainConfig) -> np.ndarray:
    """Crops (n, h, w, 3) uint8 that an autoencoder's start and its latents' scale come from."""
    return fixed_batch(source, config.data, _START_CROPS)["hr"]


def _resume(
    config: TrainConfig,
    checkpoints: Checkpoints | Managed,
    step: int,
    mesh: Mesh,
    source: Source,
    tx: optax.GradientTransformation | None,
) -> _Progress:
    config = checkpoints.resume_config(step, config)
    run = abstract_run(config, mesh, tx)
    saved = checkpoints.restore(step, run.state)
    samples = start_of(saved.data, source, seed=config.seed)
    return _Progress(run._replace(state=saved.state), step, samples, **saved.log)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _introduction(start: _Progress, output: Path | None, mesh: Mesh, source: Source) -> str:
    count = sum(leaf.size for leaf in start.run.state.learn.values())
    begin = f"resumed at step {start.step}" if start.step else "a new run"
    layout = " x ".join(f"{size} {name}" for name, size in mesh.shape.items())
    return (
        f"{output or source.path}: {begin}, stage {start.run.config.stage.name}, "
        f"{count / 1e6:.1f} M parameters learn, {len(source)} images, "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} devices ({layout}), "
        f"{jax.process_count()} processes"
    )
