"""Training batches out of a bank, each a function of its own random generator alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dossr_jax.data.degradation import SCALE
from dossr_jax.errors import UserError


class Bank:
    """One split of a bank on disk: `hr` (n, 256, 256, 3) and `lr` (n, presets, 64, 64, 3), uint8.

    Raises:
      UserError: the folder holds no bank.
    """

    def __init__(self, folder: Path, split: str):
        try:
            self.presets: list[str] = json.loads((folder / "bank.json").read_text())["presets"]
            self.hr = np.load(folder / split / "hr.npy", mmap_mode="r")
            self.lr = np.load(folder / split / "lr.npy", mmap_mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: no bank of crops ({error}); build it: python -m dossr_jax.data.bank"
            ) from error

    def __len__(self) -> int:
        return len(self.hr)

    def batch(self, rng: np.random.Generator, size: int, batch: int) -> dict[str, np.ndarray]:
        """Random windows, flipped and turned: `lr` of side `size`, `hr` of 4 times that, uint8."""
        lr, hr = [], []
        for _ in range(batch):
            i, k = rng.integers(len(self)), rng.integers(len(self.presets))
            y, x = rng.integers(self.lr.shape[2] - size + 1, size=2)
            turns, mirror = rng.integers(4), rng.integers(2)
            for out, image, scale in ((lr, self.lr[i, k], 1), (hr, self.hr[i], SCALE)):
                side = size * scale
                window = image[y * scale :, x * scale :][:side, :side]
                out.append(np.rot90(window[:, ::-1] if mirror else window, turns))
        return {"lr": np.stack(lr), "hr": np.stack(hr)}


class Latents:
    """Latents of crops in memory: `x0` and `x_lr`, each (n, h, w, z)."""

    def __init__(self, x0: np.ndarray, x_lr: np.ndarray):
        self.x0 = x0
        self.x_lr = x_lr

    def batch(self, rng: np.random.Generator, size: int, batch: int) -> dict[str, np.ndarray]:
        """Random windows of side `size`; `prompt` (batch,) picks one of the two embeddings.

        Not flipped: a latent of a mirrored image is not the mirrored latent.
        """
        index = rng.integers(len(self.x0), size=batch)
        corner = rng.integers(self.x0.shape[1] - size + 1, size=(batch, 2))
        windows = {
            name: np.stack(
                [
                    source[i, y : y + size, x : x + size]
                    for i, (y, x) in zip(index, corner, strict=True)
                ]
            ).astype(np.float32)
            for name, source in (("x0", self.x0), ("x_lr", self.x_lr))
        }
        return windows | {"prompt": rng.integers(2, size=batch)}
