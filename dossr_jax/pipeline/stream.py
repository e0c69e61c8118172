"""Images through a model as they come: one batch ahead of the device, and within its memory.

While a device works on a batch, the next one is read and placed beside it, and the results of the
last one are fetched and used.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dossr_jax import image_io
from dossr_jax.errors import UserError
from dossr_jax.pipeline import memory
from dossr_jax.pipeline.blocks import paste
from dossr_jax.pipeline.networks import Call, Networks, Placed
from dossr_jax.pipeline.queueing import Queue
from dossr_jax.pipeline.work import Job, Part, Work

_NOT_FINITE = "the networks gave NaN or infinity; use --dtype float32, or another model"
_NO_MEMORY = "out of memory; use --dtype bfloat16, a device with more of it, or cut the image"


@dataclasses.dataclass(frozen=True)
class Restored:
    """One result.

    Attributes:
      image: (round(scale h), round(scale w), 3), of the input's dtype.
      pre_restored, decoded: the stages at the size that the networks make, where they were asked
        for; None for an image that was restored in blocks.
      seconds: its share of the wall time of its batch, including compilation.
      notes: what is done otherwise from here on, as memory was short; short sentences.
    """

    image: np.ndarray
    pre_restored: np.ndarray | None
    decoded: np.ndarray | None
    seconds: float
    notes: tuple[str, ...] = ()


Outcome = tuple[Any, Restored | UserError]


@dataclasses.dataclass(frozen=True)
class _Running:
    """Work on the device, since a time; `result` is on its way."""

    work: Work
    began: float
    result: Any


class Stream:
    """One pass of images, for one :meth:`run`."""

    def __init__(self, networks: Networks, call: Call, sizes: Iterable[tuple[int, int]] = ()):
        """`sizes`: (h, w) of images to come, as far as known: for few programs, in full batches."""
        self._networks, self._call = networks, call
        self._factor = networks.limits.buckets.geometry.factor
        adain = call.settings.sampler.color_fix == "adain" and call.table is not None
        self._queue = Queue(networks, call.settings, sizes, adain)
        self._outcomes: deque[Outcome] = deque()
        self._notes: list[str] = []
        self._free_since = 0.0

    def run(self, images: Iterable[tuple[Any, np.ndarray]]) -> Iterator[Outcome]:
        """See :meth:`dossr_jax.Upscaler.stream`."""
        running = None
        for work in self._queue.works(images):
            began = time.perf_counter()
            placed = None if work is None else self._place(work)
            # One at a time is on the device, so that memory is that of one.
            done = self._settle(running)
            running = None
            if work is not None and placed is not None:
                running = self._start(work, *placed, max(began, self._free_since))
            if done is not None:
                self._finish(*done)
            self._outcomes.extend(self._queue.refused)
            self._queue.refused.clear()
            while self._outcomes:
                yield self._outcomes.popleft()

    def _place(self, work: Work) -> tuple[Placed, int] | None:
        """What is on the device, and bytes that are needed; None where memory is short."""
        try:
            placed = self._networks.place(self._call, work)
            return placed, self._networks.needed_memory(self._call, work, placed)
        except Exception as error:
            self._fail(work, error)
            return None

    def _start(self, work: Work, placed: Placed, needed: int, began: float) -> _Running | None:
        if needed and needed > (usable := self._networks.usable_memory()):
            self._shrink(work, usable / needed)
            return None
        try:
            return _Running(work, began, self._networks.start(self._call, placed))
        except Exception as error:
            self._fail(work, error)
            return None

    def _settle(self, running: _Running | None) -> tuple[Work, float, Any] | None:
        """What was running, done: work, seconds, results on the device; None where it failed."""
        if running is None:
            return None
        try:
            jax.block_until_ready(running.result)
        except Exception as error:
            self._fail(running.work, error)
            return None
        self._free_since = time.perf_counter()
        return running.work, self._free_since - running.began, running.result

    # Where memory is short

    def _fail(self, work: Work, error: Exception) -> None:
        if not memory.is_lack(error):
            raise error
        self._shrink(work, 0.5)

    def _shrink(self, work: Work, share: float) -> None:
        """Plan its jobs again, with less at a time unless that is so already."""
        networks = self._networks
        if work.part is not None and work.part.of.over:
            return
        if work.limits == networks.limits:
            found = work.limits.smaller(
                work.canvas,
                work.images,
                work.places,
                work.tile_batch,
                share=min(share, 0.5),
                in_blocks=not networks.system.whole_image,
            )
            if found is None:
                for job in work.jobs:
                    self._give(job, UserError(f"{job.sides} pixels: {_NO_MEMORY}"))
                return
            networks.limits, change = found
            self._notes.append(f"memory is short: from here on {change}")
        for job in work.jobs:
            if job.part is not None:  # Its blocks are to be of one kind, and pasted in order.
                job.part.of.over, job = True, job.part.of.job
            self._queue.again.append(job)

    # Results

    def _finish(self, work: Work, seconds: float, result: Any) -> None:
        part = work.part
        if part is not None:
            if not part.of.over:
                part.of.seconds += seconds
                self._add(work.jobs[0], part, result)
            return
        seconds /= len(work.jobs)
        result = jax.tree.map(np.asarray, result)
        for i, job in enumerate(work.jobs):
            if not result.finite[i]:
                self._give(job, UserError(f"{job.sides} pixels: {_NOT_FINITE}"))
                continue
            height, width = job.image.shape[:2]
            rows, columns = self._factor * height, self._factor * width
            # Copies, as what is kept of a batch would keep all of it.
            image, pre, decoded = (
                None if stage is None else stage[i, :rows, :columns].copy()
                for stage in (result.result, result.pre_restored, result.decoded)
            )
            assert image is not None
            sides = image_io.output_size(height, width, self._call.settings.scale)
            self._give(job, Restored(image_io.resample(image, *sides), pre, decoded, seconds))

    def _add(self, job: Job, part: Part, result: Any) -> None:
        """Take up the result of a block."""
        whole, block = part.of, part.block
        if part.measure:
            whole.measured.append((np.asarray(result)[0], block.owned[0] * block.owned[1]))
            return
        if not np.asarray(result.finite)[0]:
            whole.over = True
            self._give(whole.job, UserError(f"{whole.job.sides} pixels: {_NOT_FINITE}"))
            return
        rows, columns = self._factor * block.height, self._factor * block.width
        image = np.asarray(result.result)[0, :rows, :columns]
        paste(whole.result, image, block, whole.job.image.shape[:2])
        whole.left -= 1
        if not whole.left:
            self._give(whole.job, Restored(whole.result, None, None, whole.seconds))

    def _give(self, job: Job, outcome: Restored | UserError) -> None:
        if isinstance(outcome, UserError):
            if job.part is not None:
                job.part.of.over, job = True, job.part.of.job
        elif self._notes:
            outcome = dataclasses.replace(outcome, notes=tuple(self._notes))
            self._notes.clear()
        self._outcomes.append((job.name, outcome))
