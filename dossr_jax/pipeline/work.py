"""Images to restore, and what of them runs together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dossr_jax.pipeline.blocks import Block
from dossr_jax.pipeline.buckets import Canvas
from dossr_jax.pipeline.limits import Limits


@dataclasses.dataclass(eq=False)
class Assembly:
    """A large image on its way through the device, block by block.

    Attributes:
      result: in place. left: blocks that it lacks.
      measured: moments of blocks and their pixels. moments: of the whole, float32 (2, 2, 3), where
        the colour fix needs them.
      over: nothing of it is awaited any more: it failed, or begins anew.
    """

    job: Job
    result: np.ndarray
    left: int
    seconds: float = 0.0
    measured: list[tuple[np.ndarray, int]] = dataclasses.field(default_factory=list)
    moments: np.ndarray | None = None
    over: bool = False


class Part(NamedTuple):
    """A block of an image; `measure`: its moments are wanted, not its pixels."""

    of: Assembly
    block: Block
    measure: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An image to restore, uint8 or uint16 (h, w, 3 or 4), or a block; the fourth is an eta map."""

    name: Any
    image: np.ndarray
    seed: int
    part: Part | None = None

    @property
    def sides(self) -> str:
        """Width x height."""
        return f"{self.image.shape[1]}x{self.image.shape[0]}"


@dataclasses.dataclass(frozen=True)
class Work:
    """Jobs that run together: images of one dtype on canvases of one class.

    Attributes:
      places: canvases of the program. tile_batch: its tiles that run together.
      limits: what it was planned by.
    """

    canvas: Canvas
    jobs: Sequence[Job]
    places: int
    tile_batch: int
    limits: Limits

    @property
    def images(self) -> list[np.ndarray]:
        """One per job."""
        return [job.image for job in self.jobs]

    @property
    def part(self) -> Part | None:
        """What it is of, where it is a block."""
        return self.jobs[0].part
