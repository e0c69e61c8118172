"""Scores restored images and measures what restoring them costs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from dossr_jax import image_io
from dossr_jax.errors import UserError
from dossr_jax.evaluate.candidates import Candidate, Named
from dossr_jax.evaluate.page import Gallery
from dossr_jax.evaluate.report import Cost, Result
from dossr_jax.evaluate.scores import Undefined, score, sides
from dossr_jax.evaluate.sets import Folder, ImageSet, is_grey


@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """Scores of one set of images, however many ways they are restored.

    Attributes:
      border: pixels at every edge that PSNR and SSIM leave out.
      advance: called after every image, with what went wrong or None.
      repeats: timed runs of one image for the latency; 0 measures none.
      save: folder for the restored images, a subfolder for each way to restore; None keeps none.
      gallery: gets all restored images, for a page; None where there is none.
      failures: images that could not be read, restored or compared, a line each.
      gaps: metric -> images for which it is not defined.
      mixed: images that are grey on one side and have colour on the other.
    """

    images: ImageSet
    metrics: Sequence[str]
    border: int
    repeats: int
    save: Path | None
    advance: Callable[[str | None], object] = lambda problem: None
    gallery: Gallery | None = None
    failures: list[str] = dataclasses.field(default_factory=list)
    gaps: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    mixed: set[str] = dataclasses.field(default_factory=set)

    def folder(self, folder: Folder, row: str) -> Result:
        """Score images on the disk; `row` is the folder's name in the report."""
        scores: dict[str, dict[str, float]] = {}
        for name, path in sorted(folder.files.items()):
            try:
                image, reference = image_io.read_image(path), self.images.reference(name)
                if reference is not None and is_grey(image) != is_grey(reference):
                    self.mixed.add(name)
                scores[name] = self._score(name, image, reference)
                self._show(row, name, image)
            except UserError as error:
                self._fail(path, error)
            else:
                self.advance(None)
        return Result(row, str(folder.path), scores, None)

    def candidate(self, candidate: Candidate) -> Result:
        """Restore all images and score them."""
        scores: dict[str, dict[str, float]] = {}
        first: list[Named] = []
        read = self.images.reference if candidate.of_reference else self.images.input
        prefix = f"{candidate.name}: "

        def inputs() -> Iterator[Named]:
            for name in self.images.names:
                try:
                    image = read(name)
                except UserError as error:
                    self._fail(name, error, prefix)
                    continue
                assert image is not None, "the command line asks for the ground truth"
                first[:] = first or [(name, image)]
                yield name, image

        _reset_peak()
        for name, restored in candidate.restore(inputs()):
            try:
                if isinstance(restored, UserError):
                    raise restored
                if self.save is not None:
                    place = self.save / candidate.name.replace("/", "_").replace(":", "-")
                    image_io.write_image(place / f"{name}.png", restored)
                scores[name] = self._score(name, restored, self.images.reference(name))
                self._show(candidate.name, name, restored)
            except UserError as error:
                self._fail(name, error, prefix)
            else:
                self.advance(None)
        memory = _peak()
        latency = self._time(candidate, first) if first and self.repeats else None
        size = sides(first[0][1]) if first else ""
        cost = Cost(candidate.parameters, candidate.evaluations, latency, size, memory)
        ordered = {name: scores[name] for name in self.images.names if name in scores}
        return Result(candidate.name, candidate.description, ordered, cost)

    def _time(self, candidate: Candidate, image: Sequence[Named]) -> float:
        """Median seconds for one image; a first run may compile a batch of one, uncounted."""
        seconds = []
        for _ in range(self.repeats + 1):
            begin = time.perf_counter()
            list(candidate.restore(image))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[1:])

    def _score(
        self, name: str, image: np.ndarray, reference: np.ndarray | None
    ) -> dict[str, float]:
        values = {}
        for metric in self.metrics:
            try:
                values |= score(image, reference, [metric], border=self.border)
            except Undefined:
                self.gaps.setdefault(metric, set()).add(name)
        return values

    def _show(self, row: str, name: str, image: np.ndarray) -> None:
        if self.gallery is not None:
            self.gallery.add(row, name, image)

    def _fail(self, image: object, error: UserError, prefix: str = "") -> None:
        """List an error, in a line that names its image once."""
        named = str(error).startswith(str(image))
        self.fail(prefix + (str(error) if named else f"{image}: {error}"))

    def fail(self, problem: str) -> None:
        """List what went wrong."""
        self.failures.append(problem)
        self.advance(problem)


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
