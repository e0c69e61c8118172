"""Which images run together, and in which order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.image import merge_moments
from dossr_jax.image_io import output_size
from dossr_jax.pipeline import memory
from dossr_jax.pipeline.blocks import Block, blocks_of
from dossr_jax.pipeline.buckets import Canvas
from dossr_jax.pipeline.networks import Networks
from dossr_jax.pipeline.settings import Settings
from dossr_jax.pipeline.work import Assembly, Job, Part, Work

# Bytes of pixels that may wait for others to run with.
_MOST_WAITING = 300 * 10**6

# What images have in common that run together: class, dtype and channels.
_Kind = tuple[Canvas, np.dtype, int]


class Queue:
    """Jobs in, work out.

    Attributes:
      again: jobs to be planned once more, as memory was short for them.
      refused: names of images that no memory suffices for, and why.
    """

    def __init__(
        self, networks: Networks, settings: Settings, sizes: Iterable[tuple[int, int]], adain: bool
    ):
        """`sizes`: (h, w) of images to come, as far as known. `adain`: the fix is of the whole."""
        self.again: deque[Job] = deque()
        self.refused: list[tuple[Any, UserError]] = []
        self._networks, self._settings, self._adain = networks, settings, adain
        self._waiting: dict[_Kind, list[Job]] = {}
        self._merged, self._places = self._plan(sizes)

    def works(self, images: Iterable[tuple[Any, np.ndarray]]) -> Iterator[Work | None]:
        """Work in the order in which it is to run; None asks for what runs to be finished."""
        for index, (name, image) in enumerate(images):
            height, width = image.shape[:2]
            try:
                memory.check_memory(height, width, self._settings.scale, image.itemsize)
            except UserError as error:
                self.refused.append((name, error))
                continue
            yield from self._works_of(Job(name, image, self._settings.seed_of(index)))
            yield from self._works_again()
        while True:
            for kind in list(self._waiting):
                yield self._together(kind)
            yield None
            if not (self._waiting or self.again):
                return
            yield from self._works_again()

    def _works_again(self) -> Iterator[Work | None]:
        while self.again:
            yield from self._works_of(self.again.popleft())

    def _works_of(self, job: Job) -> Iterator[Work | None]:
        height, width = job.image.shape[:2]
        blocks = self._blocks_of(height, width)
        if len(blocks) > 1:
            yield from self._works_of_blocks(job, blocks)
            return
        kind = self._canvas(job), job.image.dtype, job.image.shape[2]
        self._waiting.setdefault(kind, []).append(job)
        if len(self._waiting[kind]) >= self._most(kind[0]):
            yield self._together(kind)
        elif sum(map(_bytes, self._waiting.values())) > _MOST_WAITING:
            yield self._together(max(self._waiting, key=lambda k: _bytes(self._waiting[k])))

    def _works_of_blocks(self, job: Job, blocks: Sequence[Block]) -> Iterator[Work | None]:
        sides = output_size(job.image.shape[0], job.image.shape[1], self._settings.scale)
        whole = Assembly(job, np.empty((*sides, 3), job.image.dtype), len(blocks))
        for measure in (True, False) if self._adain else (False,):
            for block in blocks:
                part = Part(whole, block, measure)
                job_of_block = Job(job.name, block.cut(job.image), job.seed, part)
                yield self._work(self._canvas(job_of_block), [job_of_block], 1)
                if whole.over:
                    return
            if measure:
                yield None
                if whole.over:
                    return
                parts, pixels = zip(*whole.measured, strict=True)
                whole.moments = merge_moments(np.stack(parts), pixels)

    def _plan(
        self, sizes: Iterable[tuple[int, int]]
    ) -> tuple[dict[Canvas, Canvas], dict[Canvas, int]]:
        """Which classes share a program, and how many images one has, by the sizes to come."""
        blocks = [self._blocks_of(*size) for size in sizes]
        buckets = self._networks.limits.buckets
        merged = buckets.merge((b.height, b.width) for parts in blocks for b in parts)
        alone = [parts[0] for parts in blocks if len(parts) == 1]
        counts = Counter(merged[buckets.canvas(b.height, b.width)] for b in alone)
        places = {}
        for canvas, count in counts.items():
            batches = -(-count // self._capacity(canvas))
            places[canvas] = self._filled(canvas, -(-count // batches))
        return merged, places

    def _blocks_of(self, height: int, width: int) -> list[Block]:
        """The blocks of an image, or itself."""
        in_blocks = not self._networks.system.whole_image
        limits = self._networks.limits
        factor = limits.buckets.geometry.factor
        side = limits.side if in_blocks else factor * max(height, width)
        return blocks_of(height, width, side, factor)

    def _canvas(self, job: Job) -> Canvas:
        canvas = self._networks.limits.buckets.canvas(*job.image.shape[:2])
        return self._merged.get(canvas, canvas)

    def _capacity(self, canvas: Canvas) -> int:
        most = self._networks.at_a_time(self._settings.batch_size)
        return self._networks.limits.buckets.capacity(canvas, *most)

    def _filled(self, canvas: Canvas, images: int) -> int:
        """Places for so many: powers of two are few, and found again among stored programs."""
        return min(1 << (images - 1).bit_length(), self._capacity(canvas))

    def _most(self, canvas: Canvas) -> int:
        """Images of a class that run together."""
        capacity = self._capacity(canvas)
        return min(capacity, self._places.get(canvas, capacity))

    def _together(self, kind: _Kind) -> Work:
        canvas, jobs = kind[0], self._waiting.pop(kind)
        capacity = self._capacity(canvas)
        if len(jobs) > capacity:  # It was more before memory turned out to be short.
            self._waiting[kind] = jobs[capacity:]
            jobs = jobs[:capacity]
        # A program that is there is used with places to spare.
        if not len(jobs) <= self._places.get(canvas, 0) <= capacity:
            self._places[canvas] = self._filled(canvas, len(jobs))
        return self._work(canvas, jobs, self._places[canvas])

    def _work(self, canvas: Canvas, jobs: Sequence[Job], places: int) -> Work:
        limits = self._networks.limits
        if not canvas.tiled:
            places = limits.shared(places)
        most = self._networks.at_a_time(self._settings.batch_size)
        tiles = limits.shared(limits.buckets.tile_batch(canvas, places, *most))
        return Work(canvas, jobs, places, tiles, limits)


def _bytes(jobs: Sequence[Job]) -> int:
    return sum(job.image.nbytes for job in jobs)
