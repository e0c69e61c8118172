"""Photos larger than the memory of a device takes: restored block by block on the host.

Neighbouring blocks share a margin. Its middle half is blended; nearer to their edges networks see
too little. Their noise is that of the whole photo.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from dossr_jax.config import AREA
from dossr_jax.image_io import resample

# Pixels of the result, as networks make it: the largest side that is worked on at once, and the
# least that memory may reduce it to.
SIDE, LEAST_SIDE = 4096, 1024
# Blocks begin at multiples of AREA, so that mean colours are kept by areas that are those of the
# whole photo.
MARGIN = 6 * AREA


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a photo, in pixels of the input.

    Attributes:
      row, column, height, width: what is restored, with margins.
      owned: rows and columns from its beginning that no later block has.
    """

    row: int
    column: int
    height: int
    width: int
    owned: tuple[int, int]

    def cut(self, photo: np.ndarray) -> np.ndarray:
        """The part of a photo (h, w, c)."""
        return photo[self.row :, self.column :][: self.height, : self.width]


def blocks_of(height: int, width: int, side: int, factor: int) -> list[Block]:
    """The blocks of a photo of this size, row by row; one if no side of its result is longer.

    Others have three quarters of it at most, which takes half of the memory.

    Args:
      side: in pixels of the result. factor: those per pixel of the photo.
    """
    most = side if factor * max(height, width) <= side else side * 3 // 4 // AREA * AREA
    parts = itertools.product(*(_spans(length, most, factor) for length in (height, width)))
    return [
        Block(row, column, h, w, (own_h, own_w)) for (row, h, own_h), (column, w, own_w) in parts
    ]


def _spans(length: int, most: int, factor: int) -> Iterator[tuple[int, int, int]]:
    """(start, length, length without what the next has) of overlapping parts, about equal.

    `most`: in pixels of the result, of which a pixel of the photo has `factor`.
    """
    most, area, margin = most // factor, AREA // factor, MARGIN // factor
    if length <= most:
        yield 0, length, length
        return
    rest = length - margin
    step = math.ceil(rest / math.ceil(rest / (most - margin)) / area) * area
    for start in range(0, rest, step):
        left = length - start
        yield start, min(step + margin, left), left if start + step >= rest else step


def paste(result: np.ndarray, image: np.ndarray, block: Block, photo: tuple[int, int]) -> None:
    """Put a restored block into the result of a photo.

    Args:
      result: (h, w, 3) of any size, in place.
      image: the block, as the networks enlarge it.
      photo: (height, width) of the photo.
    """
    factor = image.shape[0] // block.height
    rows = _Place.of(block.row, block.height, photo[0], result.shape[0], factor)
    columns = _Place.of(block.column, block.width, photo[1], result.shape[1], factor)
    box = (columns.begin, rows.begin, columns.end, rows.end)
    new = resample(image, rows.stop - rows.start, columns.stop - columns.start, box)
    old = result[rows.start : rows.stop, columns.start : columns.stop]
    share = rows.share[:, None, None] * columns.share[None, :, None]
    if (share == 1).all():
        old[...] = new
    else:
        mixed = old + share * (new.astype(np.float32) - old)
        old[...] = np.round(mixed).astype(result.dtype)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a block lies along one axis.

    start, stop: pixels of the result. begin, end: the same in pixels of the restored block. share:
    of the block in every pixel, less than 1 where an earlier one is there.
    """

    start: int
    stop: int
    begin: float
    end: float
    share: np.ndarray

    @classmethod
    def of(cls, start: int, length: int, whole: int, made: int, factor: int) -> _Place:
        """Of `length` pixels from `start` on, in a photo of `whole` and a result of `made`."""
        shared = MARGIN // factor if start else 0
        scale = made / whole
        first = -(-(start + shared // 4) * made // whole) if shared else 0
        last = made if start + length == whole else (start + length) * made // whole
        begin, end = (factor * (place / scale - start) for place in (first, last))
        centres = (np.arange(first, last) + 0.5) / scale - start
        share = np.ones(last - first, np.float32)
        if shared:
            share = np.clip((centres - shared / 4) / (shared / 2), 0, 1).astype(np.float32)
        return cls(first, last, begin, end, share)
