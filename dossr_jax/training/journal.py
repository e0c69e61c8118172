"""Logs of a run: progress bar, lines, metrics.jsonl, TensorBoard. Only process 0 writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from dossr_jax.config import TrainConfig
from dossr_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"
_LINE_SECONDS = 30
_PROTO: Any = event_pb2  # its classes are made when it is imported


class Journal(contextlib.AbstractContextManager):
    """The record of one run in its folder.

    metrics.jsonl holds a line per log interval and per validation, only of what is the same in
    every run of the configuration: an interrupted run ends with the bytes of an uninterrupted one.

    Raises:
      UserError: also from its methods: the folder cannot be written.
    """

    def __init__(self, folder: Path, config: TrainConfig, step: int, validated: bool):
        """Open the logs of a run that begins at `step`; lines of later steps are removed.

        `validated`: this step was already validated.
        """
        self._folder, self._config = folder, config
        self._writes = jax.process_index() == 0
        self._said = -math.inf
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            desc=config.stage.name,
            unit="step",
            dynamic_ncols=True,
            smoothing=0,
            disable=not self._writes,
            # A bar in a file would be a line for every update.
            mininterval=0.2 if sys.stderr.isatty() else 60,
        )
        self.start_clock(step, 0.0)
        if self._writes:
            with self._writing():
                _cut(folder / METRICS_FILE, step, validated)
                self._file = open(folder / METRICS_FILE, "a")
                self._board = _Board(folder / "tensorboard", step, step + validated)

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._writes:
            # What did not fit on the disk has been told when metrics.jsonl was written.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._writes:
            self._bar.write(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

    def advance(self, step: int) -> None:
        """Show that a step is running."""
        self._bar.update(step - self._bar.n)

    def start_clock(self, step: int, waited: float) -> None:
        """Time the run from here on. `waited`: seconds spent waiting for data so far."""
        self._bar.initial = step
        self._bar.start_t = self._bar.last_print_t = time.time()
        self._mark = step, waited, time.monotonic()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Exclude the time spent inside from throughput and expected end."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        step, waited, clock = self._mark
        self._mark = step, waited, clock + seconds
        self._bar.start_t += seconds
        self._bar.last_print_t = time.time()

    def log(self, step: int, metrics: Mapping[str, float], waited: float) -> None:
        """Record means of metrics since the last log line; `waited` as in start_clock."""
        step_before, waited_before, clock = self._mark
        self._mark = step, waited, time.monotonic()
        seconds = self._mark[2] - clock
        pace = {
            "images_per_second": (step - step_before) * self._config.data.batch / seconds,
            "waiting_for_data": (waited - waited_before) / seconds,
        }
        self._record(step, "train", metrics, {**metrics, **pace})
        self._bar.set_postfix_str(_text({"loss": metrics["loss"]} | pace), refresh=False)
        last = step == self._config.steps
        if last or time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"step {step}/{self._config.steps} {_text({**metrics, **pace})}")

    def validation(self, step: int, metrics: Mapping[str, float], picture: np.ndarray) -> None:
        """Record a validation; `picture` (h, w, 3) uint8 goes to pictures/STEP.png."""
        self._record(step, "validation", metrics, metrics)
        self.say(f"step {step} validation {_text(metrics)}")
        if self._writes:
            with self._writing():
                self._board.add(step, summary.image("validation", picture, dataformats="HWC"))
                target = self._folder / "pictures" / f"{step}.png"
                target.parent.mkdir(exist_ok=True)
                temporary = target.with_name(f".{target.name}.tmp")
                Image.fromarray(picture).save(temporary, format="png")
                os.replace(temporary, target)

    def _record(
        self, step: int, kind: str, lasting: Mapping[str, float], shown: Mapping[str, float]
    ) -> None:
        if not self._writes:
            return
        with self._writing():
            self._file.write(json.dumps({"step": step, "kind": kind, **lasting}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            scalars = [summary.scalar(f"{kind}/{name}", value) for name, value in shown.items()]
            self._board.add(step, *scalars)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: the run's logs cannot be written ({error.strerror}); complete "
                "checkpoints stay; free space and run the same command again to resume from them"
            ) from error


class _Board:
    """TensorBoard's file, written synchronously: tensorboardX's writer fails in a thread."""

    def __init__(self, folder: Path, step: int, purge: int):
        """Open a file that replaces everything shown from step `purge` on."""
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        again = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._writer.write_event(_PROTO.Event(wall_time=time.time(), step=purge, session_log=again))

    def add(self, step: int, *summaries: summary.Summary) -> None:
        for each in summaries:
            self._writer.write_event(_PROTO.Event(wall_time=time.time(), step=step, summary=each))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _text(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _cut(path: Path, step: int, validated: bool) -> None:
    """Drop lines after `step` (its validation too, unless done) and broken ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            if entry["step"] + (entry["kind"] == "validation" and not validated) > step:
                break
        except ValueError:
            break
        kept.append(line)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
