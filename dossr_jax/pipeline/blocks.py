"""Photos larger than the memory of a device takes: restored block by block on the host.

A canvas of the whole photo needs 1 to 2 GB per million of its pixels. Neighbouring blocks share a
margin. Its middle half is blended; nearer to their edges networks see too little.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np

from dossr_jax.config import AREA, UPSCALE
from dossr_jax.errors import UserError
from dossr_jax.image_io import output_size, resample

# Pixels of the input. Blocks begin at multiples of AREA, so that mean colours are kept by areas
# that are those of the whole photo.
SIDE = 1024
MARGIN = 6 * AREA


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a photo, in pixels of the input.

    Attributes:
      number: its place in their order.
      row, column, height, width: what is restored, with margins.
    """

    number: int
    row: int
    column: int
    height: int
    width: int

    def cut(self, photo: np.ndarray) -> np.ndarray:
        """The part of a photo (h, w, c)."""
        return photo[self.row :, self.column :][: self.height, : self.width]


def blocks_of(height: int, width: int) -> list[Block]:
    """The blocks of a photo of this size, row by row."""
    parts = enumerate(itertools.product(_spans(height), _spans(width)))
    return [Block(number, row, column, h, w) for number, ((row, h), (column, w)) in parts]


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """(start, length) of overlapping parts."""
    start = 0
    while length - start > SIDE:
        yield start, SIDE
        start += SIDE - MARGIN
    yield start, length - start


def paste(result: np.ndarray, image: np.ndarray, block: Block, photo: tuple[int, int]) -> None:
    """Put a restored block into the result of a photo.

    Args:
      result: (h, w, 3) of any size, in place.
      image: the block, four times its size.
      photo: (height, width) of the photo.
    """
    rows = _Place.of(block.row, block.height, photo[0], result.shape[0])
    columns = _Place.of(block.column, block.width, photo[1], result.shape[1])
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
    def of(cls, start: int, length: int, whole: int, made: int) -> _Place:
        """Of `length` pixels from `start` on, in a photo of `whole` and a result of `made`."""
        shared = MARGIN if start else 0
        scale = made / whole
        first = -(-(start + shared // 4) * made // whole) if shared else 0
        last = made if start + length == whole else (start + length) * made // whole
        begin, end = (UPSCALE * (place / scale - start) for place in (first, last))
        centres = (np.arange(first, last) + 0.5) / scale - start
        share = np.ones(last - first, np.float32)
        if shared:
            share = np.clip((centres - shared / 4) / (shared / 2), 0, 1).astype(np.float32)
        return cls(first, last, begin, end, share)


def check_memory(height: int, width: int, scale: float, itemsize: int = 1) -> None:
    """Check that the result of a photo fits into the memory of this machine.

    Raises:
      UserError: it does not.
    """
    rows, columns = output_size(height, width, scale)
    needed = 3 * rows * columns * itemsize * 2  # the result, and another of its size as a file
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{width}x{height} pixels are {columns}x{rows} at scale {scale:g}: about "
            f"{needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free; cut the image or "
            "reduce the scale"
        )


def free_memory() -> int | None:
    """Bytes of memory that this machine has free, or has at all; None where it says neither."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
