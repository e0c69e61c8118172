"""LR partners of HR images, the same in every run: by a preset of degradation and a seed."""

from __future__ import annotations

import functools
import zlib

import jax
import numpy as np

from dossr_jax.data.degradation import degrade, make_table

_degrade = jax.jit(degrade, static_argnames="scale")


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The top left part of an image (h, w, c) whose sides are multiples of `scale`."""
    height, width = (side - side % scale for side in image.shape[:2])
    return image[:height, :width]


def preset_scale(preset: str) -> int:
    """HR side by LR side of a preset; UserError for an unknown one."""
    return _table(preset).outline.scale


def make_lr(hr: np.ndarray, *, preset: str, seed: int, name: str) -> np.ndarray:
    """Degrade an HR image.

    The result depends on the image, the preset, the seed and the name alone: not on other images,
    their order or their number. Processors and accelerators run different programs, which may
    differ by a level. A program is compiled for every size, up to a minute for the long chains.

    Args:
      hr: uint8 (h, w, 3), sides multiples of the preset's scale (:func:`crop_to_multiple`).
      preset: of `dossr_jax.data.degradation.PRESETS`.
      seed: 0 to 2^32 - 1.
      name: what tells images of a set apart: the file's stem.

    Returns:
      uint8 (h/scale, w/scale, 3).

    Raises:
      UserError: an unknown preset.
    """
    table = _table(preset)
    # Not Python's hash, which differs from process to process.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    x = hr[None].astype(np.float32) / 255
    lr = np.asarray(_degrade(key[None], x, table, scale=table.outline.scale))[0]
    return np.rint(255 * lr).astype(np.uint8)


_table = functools.cache(lambda preset: make_table([preset]))
