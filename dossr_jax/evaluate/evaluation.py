"""Scoring of what was restored, image by image, and what it cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from dossr_jax import image_io
from dossr_jax.errors import UserError
from dossr_jax.evaluate.candidates import Candidate, Named
from dossr_jax.evaluate.report import Cost, Result
from dossr_jax.evaluate.scores import Undefined, score
from dossr_jax.evaluate.sets import Folder, ImageSet, is_grey


class Evaluation:
    """Scores of one set of images, however many ways they are restored.

    Attributes:
      failures: images that could not be read, restored or compared, a line each.
      gaps: metric -> images for which it is not defined.
      mixed: images that are grey on one side and have colour on the other.
    """

    def __init__(
        self,
        images: ImageSet,
        metrics: Sequence[str],
        *,
        border: int,
        advance: Callable[[str | None], None],
        repeats: int,
        save: Path | None,
    ):
        """Args:
        advance: called after every image, with what went wrong or None.
        repeats: timed runs of one image for the latency; 0 measures none.
        save: folder for the restored images, a subfolder for each way to restore.
        """
        self._images, self._metrics, self._border = images, metrics, border
        self._advance, self._repeats, self._save = advance, repeats, save
        self.failures: list[str] = []
        self.gaps: dict[str, set[str]] = {}
        self.mixed: set[str] = set()

    def folder(self, folder: Folder) -> Result:
        """Score images on the disk."""
        scores: dict[str, dict[str, float]] = {}
        for name in folder.names:
            path = folder.files[name]
            try:
                image, reference = image_io.read_image(path), self._images.reference(name)
                if reference is not None and is_grey(image) != is_grey(reference):
                    self.mixed.add(name)
                scores[name] = self._score(name, image, reference)
            except UserError as error:
                self._fail(_naming(path, error))
            else:
                self._advance(None)
        return Result(folder.path.name, str(folder.path), scores, None)

    def candidate(self, candidate: Candidate) -> Result:
        """Restore all images and score them."""
        scores: dict[str, dict[str, float]] = {}
        first: list[Named] = []

        def read(name: str) -> np.ndarray:
            if not candidate.of_reference:
                return self._images.input(name)
            reference = self._images.reference(name)
            assert reference is not None, "the command line asks for it"
            return reference

        def inputs() -> Iterator[Named]:
            for name in self._images.names:
                try:
                    image = read(name)
                except UserError as error:
                    self._fail(f"{candidate.name}: {_naming(name, error)}")
                    continue
                first[:] = first or [(name, image)]
                yield name, image

        _reset_peak()
        for name, restored in candidate.restore(inputs()):
            try:
                if isinstance(restored, UserError):
                    raise restored
                if self._save is not None:
                    place = self._save / candidate.name.replace("/", "_").replace(":", "-")
                    image_io.write_image(place / f"{name}.png", restored)
                scores[name] = self._score(name, restored, self._images.reference(name))
            except UserError as error:
                self._fail(f"{candidate.name}: {_naming(name, error)}")
            else:
                self._advance(None)
        memory = _peak()
        latency, size = self._time(candidate, first) if first else (None, "")
        cost = Cost(candidate.parameters, candidate.evaluations, latency, size, memory)
        ordered = {name: scores[name] for name in self._images.names if name in scores}
        return Result(candidate.name, candidate.description, ordered, cost)

    def _time(self, candidate: Candidate, image: Sequence[Named]) -> tuple[float | None, str]:
        """Median seconds for one image; a first run may compile a batch of one, uncounted."""
        height, width = image[0][1].shape[:2]
        if not self._repeats:
            return None, f"{width}x{height}"
        seconds = []
        for _ in range(self._repeats + 1):
            begin = time.perf_counter()
            list(candidate.restore(image))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[1:]), f"{width}x{height}"

    def _score(
        self, name: str, image: np.ndarray, reference: np.ndarray | None
    ) -> dict[str, float]:
        values = {}
        for metric in self._metrics:
            try:
                values |= score(image, reference, [metric], border=self._border)
            except Undefined:
                self.gaps.setdefault(metric, set()).add(name)
        return values

    def _fail(self, problem: str) -> None:
        self.failures.append(problem)
        self._advance(problem)


def _naming(name: object, error: UserError) -> str:
    """A message that says which image it is about, once."""
    return str(error) if str(error).startswith(str(name)) else f"{name}: {error}"


def _reset_peak() -> None:
    """Let the kernel forget the process's peak of memory, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int | None:
    """Peak bytes: of the device so far, or of the process since :func:`_reset_peak` (Linux)."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(peaks[0]) if peaks else None
