"""Small photo-like pictures for tests of the data pipeline, and folders of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from dossr_jax.data.sources import held_out


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


def names_for(split: str, count: int) -> list[str]:
    """File names of which a folder holds out those for validation before those for training.

    A folder of n photos holds out a twentieth of them, rounded, and at least one.
    """
    names = [f"photo{i}.png" for i in range(1000)]
    first = held_out(names, 20)
    return [name for name in names if (name in first) == (split == "validation")][:count]
