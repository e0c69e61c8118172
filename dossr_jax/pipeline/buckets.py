"""Shape classes of images: the canvas that an image is worked on, and the tiles that cover it.

Images of one class share a compiled program. Geometry is in units of one latent position, as in
dossr_jax.tiling: `unit` pixels of the result. Sides of inputs are in their own pixels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dossr_jax.image import pad_to
from dossr_jax.systems import Geometry
from dossr_jax.tiling import plan_tiles

# Pixels of the result on the smallest canvas.
_LEAST = 128
# Pixels of results that share a program when several that need tiles are batched.
_BATCH_BUDGET = 8 * 2**20
# Pixels of surplus canvas that take as long as compiling a program, about, on a CPU.
_COMPILING = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A shape class: sides in units, and whether it is worked on tile by tile."""

    height: int
    width: int
    tiled: bool


class Batch(NamedTuple):
    """Arguments of dossr_jax.restore.restore by name; surplus canvases repeat the last image."""

    lr: np.ndarray
    size: np.ndarray
    tiles: np.ndarray
    count: np.int32


@dataclasses.dataclass(frozen=True)
class Buckets:
    """All shape classes of a model.

    Attributes:
      geometry: shapes that its networks take.
      tile: side of a tile in units; None runs every canvas whole.
    """

    geometry: Geometry
    tile: int | None

    @classmethod
    def of_pixels(cls, geometry: Geometry, tile: int) -> Buckets:
        """`tile` in pixels of the result, rounded up to what is possible; 0 is none."""
        align = geometry.align
        units = round_up(-(-tile // geometry.unit), align)
        return cls(geometry, max(units, 2 * align) if tile else None)

    @property
    def unit(self) -> int:
        """Pixels of the result per unit."""
        return self.geometry.unit

    @property
    def align(self) -> int:
        """Canvases, tiles and their corners are multiples of it, as the UNet needs."""
        return self.geometry.align

    def tiling(self, canvas: Canvas) -> dict[str, Any]:
        """The geometry of a class in dossr_jax.restore.Layout."""
        tile = self.tile if canvas.tiled else None
        return {
            "tile": tile,
            "overlap": self.overlap,
            "margin": self.overlap // 4,
            "unit": self.unit,
        }

    @property
    def overlap(self) -> int:
        """Units that neighbouring tiles share at least: a quarter of a tile."""
        return 0 if self.tile is None else round_up(self.tile // 4, self.align)

    @property
    def unit_px(self) -> int:
        """Pixels of the input per unit."""
        return self.unit // self.geometry.factor

    def arrange(self, canvas: Canvas, images: Sequence[np.ndarray], places: int) -> Batch:
        """Images (h, w, c) of one dtype that fit a class, at most `places`, on their canvases."""
        filled = [*images, *[images[-1]] * (places - len(images))]
        sides = canvas.height * self.unit_px, canvas.width * self.unit_px
        tiles, count = self.tiles(canvas, [_sides(image) for image in images], places)
        return Batch(
            lr=np.stack([pad_to(image, *sides) for image in filled]),
            size=np.array([image.shape[:2] for image in filled], np.int32),
            tiles=tiles,
            count=np.int32(count),
        )

    def canvas(self, height: int, width: int) -> Canvas:
        """The smallest class that holds an image (h, w)."""
        sides = self._units(height, width)
        if self.tile is None:
            height, width = (_grow(s, self.align, 8 * self.align) for s in sides)
            return Canvas(height, width, False)
        if max(sides) > self.tile:
            height, width = (_grow(s, self.align, self.tile) for s in sides)
            return Canvas(height, width, True)
        side = self.tile
        while side // 2 >= max(*sides, _LEAST // self.unit) and side // 2 % self.align == 0:
            side //= 2
        return Canvas(side, side, False)

    def pixels(self, canvas: Canvas) -> int:
        """Pixels of the result on a canvas."""
        return canvas.height * canvas.width * self.unit**2

    def capacity(self, canvas: Canvas, batch_size: float, together: float) -> int:
        """Images of a class that run together: at most `batch_size`, of `together` pixels."""
        if canvas.tiled:
            together = min(together, _BATCH_BUDGET)
        return max(1, int(min(batch_size, together // self.pixels(canvas))))

    def tile_batch(self, canvas: Canvas, places: int, batch_size: float, together: float) -> int:
        """Tiles that run together, of the images of a batch: as `capacity`, and few to spare."""
        if self.tile is None or not canvas.tiled:
            return 1
        tiles = places * len(self._corners(canvas.height, canvas.width))
        most = max(1, int(min(batch_size, together // (self.tile * self.unit) ** 2)))
        return -(-tiles // -(-tiles // most))

    def merge(self, sizes: Iterable[tuple[int, int]]) -> dict[Canvas, Canvas]:
        """Classes of images (h, w), and the larger ones that rare ones of them share.

        Their tiles, and with them their pixels, stay the same: images without tiles keep theirs.
        """
        counts = Counter(self.canvas(*size) for size in sizes)
        kept: list[Canvas] = []
        merged = {}
        for canvas in sorted(counts, key=self.pixels, reverse=True):
            shared = [
                other
                for other in kept
                if canvas.tiled and other.height >= canvas.height and other.width >= canvas.width
            ]
            best = min(shared, key=self.pixels, default=None)
            surplus = 0 if best is None else self.pixels(best) - self.pixels(canvas)
            if best is None or surplus * counts[canvas] > _COMPILING:
                best = canvas
                if canvas.tiled:
                    kept.append(canvas)
            merged[canvas] = best
        return merged

    def tiles(
        self, canvas: Canvas, sizes: Sequence[tuple[int, int]], places: int
    ) -> tuple[np.ndarray, int]:
        """Tiles of a batch of images (h, w), on canvases of one class with `places` places.

        Returns:
          (int32 (n, 3) rows of image, row and column in units, how many of them are to run). The
          length n depends on the class and on `places` alone; it is 0 where there are no tiles.
        """
        if self.tile is None or not canvas.tiled:
            return np.zeros((0, 3), np.int32), 0
        rows = []
        for i, size in enumerate(sizes):
            height, width = (max(side, self.tile) for side in self._units(*size))
            rows.append(np.insert(self._corners(height, width), 0, i, axis=1))
        tiles = np.concatenate(rows)
        most = places * len(self._corners(canvas.height, canvas.width))
        return np.pad(tiles, ((0, most - len(tiles)), (0, 0))), len(tiles)

    def _units(self, height: int, width: int) -> tuple[int, int]:
        """Sides of an image in units, aligned."""
        px = self.unit_px
        return round_up(-(-height // px), self.align), round_up(-(-width // px), self.align)

    def _corners(self, height: int, width: int) -> np.ndarray:
        assert self.tile is not None
        return plan_tiles(height, width, self.tile, self.overlap, self.align)


def _sides(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def _grow(side: int, align: int, least: int) -> int:
    """Smallest of least x 1, 1.5, 2, 3, 4, 6, 8, ... (rounded up to `align`) that holds `side`."""
    bucket, half = least, True
    while round_up(bucket, align) < side:
        bucket = bucket * 3 // 2 if half else bucket * 4 // 3
        half = not half
    return round_up(bucket, align)
