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
_PROTO: Any = event_pb2  # protobuf makes its classes at import, unseen by type checkers


class Journal(contextlib.AbstractContextManager):
    """The record of one run in its folder.

    metrics.jsonl holds a line per log interval and per validation, without times of day or speed:
    an interrupted run ends with the same bytes as an uninterrupted one.

    Raises:
      UserError: the folder cannot be written; the methods raise it too.
    """

    def __init__(self, folder: Path | None, config: TrainConfig, step: int, validated: bool):
        """Open the logs of a run that begins at `step`; lines of later steps are removed.

        `validated`: this step was already validated. Without a folder no files are written.
        """
        self._config = config
        self._says = jax.process_index() == 0
        self._writes = self._says and folder is not None
        self._folder = folder or Path()
        self._said = -math.inf
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            desc=config.stage.name,
            unit="step",
            dynamic_ncols=True,
            smoothing=0,
            disable=not self._says,
            # In a log file every update of the bar is a line.
            mininterval=0.2 if sys.stderr.isatty() else 60,
        )
        self.start_clock(step, 0.0)
        if self._writes:
            with self._writing():
                _cut(self._folder / METRICS_FILE, step, validated)
                self._file = open(self._folder / METRICS_FILE, "a")
                board = self._folder / "tensorboard"
                board.mkdir(exist_ok=True)
                self._board = EventsWriter(str(board / "events"), f".{step}")
                # Replaces everything shown from this step on.
                again = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
                self._show(step + validated, session_log=again)

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._writes:
            for log in (self._file, self._board):
                # A full disk was already reported when metrics.jsonl was written.
                with contextlib.suppress(OSError):
                    log.close()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._says:
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
        shown = {**metrics, **pace}
        self._record(step, "train", metrics, shown)
        self._bar.set_postfix_str(_text({"loss": metrics["loss"]} | pace), refresh=False)
        last = step == self._config.steps
        if last or time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"step {step}/{self._config.steps} {_text(shown)}")

    def validation(self, step: int, metrics: Mapping[str, float], picture: np.ndarray) -> None:
        """Record a validation; `picture` (h, w, 3) uint8 goes to pictures/STEP.png."""
        self._record(step, "validation", metrics, metrics)
        self.say(f"step {step} validation {_text(metrics)}")
        if self._writes:
            with self._writing():
                self._show(step, summary=summary.image("validation", picture, dataformats="HWC"))
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
            for name, value in shown.items():
                self._show(step, summary=summary.scalar(f"{kind}/{name}", value))

    def _show(self, step: int, **content: Any) -> None:
        """Write to TensorBoard's file at once: tensorboardX's own writer fails in a thread."""
        self._board.write_event(_PROTO.Event(wall_time=time.time(), step=step, **content))
        self._board.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: the run's logs cannot be written ({error.strerror}); complete "
                "checkpoints stay; free space and run the same command again to resume from them"
            ) from error


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
