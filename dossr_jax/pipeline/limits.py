"""How much runs at a time, and what is halved first where memory is short."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dossr_jax.pipeline.blocks import LEAST_SIDE, SIDE
from dossr_jax.pipeline.buckets import Buckets, Canvas, round_up
from dossr_jax.pipeline.settings import BUSY, DEFAULT_TILE

# Pixels of results per device that batches of no given size have: what keeps it busy.
_BUSY = {"cpu": 512**2}
_BUSY_OTHERS = BUSY * 512**2


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is known to fit into the memory of a device.

    Attributes:
      buckets: shape classes, and with them the tile.
      devices: how many share a batch.
      side: of the largest results, in pixels as the networks make them, that are not put together
        from blocks.
      together: pixels of results, or of their tiles, per device.
    """

    buckets: Buckets
    devices: int = 1
    side: int = SIDE
    together: float = math.inf

    def at_a_time(self, batch_size: int | str, platform: str) -> tuple[float, float]:
        """Images or tiles, and pixels of them, that run together on all devices."""
        if isinstance(batch_size, int):
            return batch_size, self.together * self.devices
        return math.inf, min(self.together, _BUSY.get(platform, _BUSY_OTHERS)) * self.devices

    def shared(self, count: int) -> int:
        """A count of images or tiles that divides among the devices."""
        return round_up(count, self.devices)

    def smaller(
        self,
        canvas: Canvas,
        images: Sequence[np.ndarray],
        places: int,
        tile_batch: int,
        *,
        share: float,
        in_blocks: bool,
    ) -> tuple[Limits, str] | None:
        """Limits under which a batch takes less memory, and what changes, for people.

        First fewer run together, which leaves pixels as they are; then large images are restored
        in smaller blocks; then in smaller tiles. None where nothing is left to reduce.

        Args:
          share: of what was needed that there is, at most 1/2.
          in_blocks: whether the images can be restored in blocks.
        """
        buckets, devices = self.buckets, self.devices
        of_image, tile = buckets.pixels(canvas), (buckets.tile or 0) * buckets.unit
        # Where there are tiles, all devices have all images.
        shared = 1 if canvas.tiled else devices
        if places > shared:
            fewer = max(1, int(places * share) // shared) * shared
            return self._with(together=fewer * of_image / devices), _at_a_time(fewer, "image")
        if canvas.tiled and tile_batch > devices:
            fewer = max(1, int(tile_batch * share) // devices) * devices
            return self._with(together=fewer * tile**2 / devices), _at_a_time(fewer, "tile")
        factor = buckets.geometry.factor
        longest = factor * max(max(image.shape[:2]) for image in images)
        if canvas.tiled and in_blocks and longest > LEAST_SIDE:
            side = LEAST_SIDE
            while 2 * side < min(longest, self.side):
                side *= 2
            if side < self.side:
                return self._with(side=side), f"large images in blocks of {side // factor} pixels"
        if buckets.tile is None:
            tile = DEFAULT_TILE
        else:
            tile = min(tile, max(canvas.height, canvas.width) * buckets.unit) // 2
        less = Buckets.of_pixels(buckets.geometry, tile)
        if buckets.tile is not None and (less.tile or 0) >= buckets.tile:
            return None
        tile = (less.tile or 0) * buckets.unit
        return self._with(buckets=less), f"tiles of {tile} pixels, which changes results slightly"

    def _with(self, **changes: Any) -> Limits:
        return dataclasses.replace(self, **changes)


def _at_a_time(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)} at a time"
