"""Small photo-like pictures for tests of the data pipeline, and folders of them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dossr_jax.data.sources import split_of


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture with some texture, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int32)
    return np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)


def quarter(image: np.ndarray) -> np.ndarray:
    """Means of blocks of 4x4 pixels, rounded: turns and flips with the image, exactly."""
    h, w, c = image.shape
    return np.rint(image.reshape(h // 4, 4, w // 4, 4, c).mean(axis=(1, 3))).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def names_for(split: str, count: int, hold_out: int = 20) -> list[str]:
    """File names that belong to a split."""
    names = (f"photo{i}.png" for i in range(100_000))
    chosen: Iterable[str] = (name for name in names if split_of(name, hold_out) == split)
    return [name for name, _ in zip(chosen, range(count), strict=False)]
