"""Cutting photos into tiles and encoding them."""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from dossr_jax import image_io
from dossr_jax.data import examples
from dossr_jax.data.dataset import Tally
from dossr_jax.data.sources import SCALE, Images, Record
from dossr_jax.errors import UserError

# Mean absolute difference of neighbouring 8-bit luma values: below, a tile is sky or blur.
_FLAT = 2.5
# Lossless WebP is decoded twice as fast as PNG and is a third smaller; method 0 encodes fastest.
_ENCODING = {"format": "WEBP", "lossless": True, "quality": 20, "method": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How photos are cut and split.

    Photos of `halve_above` megapixels and more (0: none) and those whose file name matches a
    pattern of `halve` are halved first, as their finest detail is rarely real; pairs never are.
    Photos with a side below a quarter of `tile` are left out. One photo in `hold_out` is for
    validation, none where that is 0.
    """

    tile: int = 1024
    halve_above: float = 4.0
    halve: Sequence[str] = ()
    hold_out: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tile < 4 * SCALE or self.tile % SCALE:
            raise UserError(f"--tile {self.tile}: not a multiple of {SCALE} from {4 * SCALE} up")
        if self.hold_out < 0 or self.hold_out == 1:
            raise UserError(
                f"--hold-out {self.hold_out}: not 0, which holds out none, and not from 2 up"
            )


def make_examples(photos: Images, options: Options, tally: Tally) -> Iterator[bytes]:
    """Serialized tiles of some photos; what is left out is added to `tally`."""
    for index, name in enumerate(photos.names):
        try:
            record = _halve(photos[index], options)
        except UserError as error:
            tally.undecodable[name] = str(error)
            continue
        if min(record.hr.shape[:2]) < options.tile // 4:
            tally.too_small.append(name)
            continue
        for tile in cut(record, options.tile):
            if flatness(tile.hr) < _FLAT:
                tally.flat_tiles += 1
                continue
            yield serialize(tile)


def serialize(record: Record) -> bytes:
    """The record of a data set; its images are encoded without loss."""
    images = {"hr": record.hr, "lr": record.lr, "pre": record.pre}
    encoded = {k: _encode(image) for k, image in images.items() if image is not None}
    return examples.serialize(encoded | {"name": record.name.encode()})


def _halve(record: Record, options: Options) -> Record:
    height, width = record.hr.shape[:2]
    large = 0 < options.halve_above * 1e6 <= height * width
    file = PurePosixPath(record.name).name
    if record.lr is not None or not (large or any(fnmatch.fnmatch(file, p) for p in options.halve)):
        return record
    return record._replace(hr=image_io.resample(record.hr, height // 2, width // 2))


def cut(record: Record, side: int) -> Iterator[Record]:
    """Tiles of `side` pixels (or of the whole image's, where that is less) that cover the image.

    They lie on an even grid with as little overlap as possible.
    """
    unit = record.scale
    low = side // unit
    grid = [_starts(length // unit, low) for length in record.hr.shape[:2]]
    for y, x in itertools.product(*grid):
        top, left = unit * y, unit * x
        hr = record.hr[top : top + side, left : left + side]
        lr = None if record.lr is None else record.lr[y : y + low, x : x + low]
        yield Record(f"{record.name}@{top},{left}", hr, lr)


def _starts(length: int, side: int) -> list[int]:
    count = math.ceil(length / side)
    return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]


def flatness(image: np.ndarray) -> float:
    """Mean absolute difference of neighbouring luma values of (h, w, 3), in 8-bit levels."""
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **_ENCODING)
    return buffer.getvalue()
