"""Metrics of other libraries that need no weights: the extra dossr-jax[perceptual]."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dossr_jax.errors import require_extra


def check_ssimulacra2() -> None:
    """Raise UserError where the library is not installed."""
    require_extra("perceptual", "ssimulacra2")


def check_flip() -> None:
    """Raise UserError where the library is not installed."""
    require_extra("perceptual", "flip_evaluator")


def ssimulacra2(image: np.ndarray, reference: np.ndarray) -> float:
    """SSIMULACRA 2 of images uint8 (h, w, 3)."""
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(_file(reference), _file(image)))


def flip(image: np.ndarray, reference: np.ndarray) -> float:
    """Mean FLIP error of images uint8 (h, w, 3), 0 to 1."""
    import flip_evaluator

    truth, other = (a.astype(np.float32) / 255 for a in (reference, image))
    _, mean, _ = flip_evaluator.evaluate(
        truth, other, "LDR", applyMagma=False, computeMeanError=True
    )
    return float(mean)


def _file(image: np.ndarray) -> io.BytesIO:
    """An image as a file in memory: the library reads nothing else."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    return file
