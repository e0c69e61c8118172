"""What the comparisons at full size share."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# The PyTorch networks that the benchmark times are those that we compare with.
sys.path.append(str(ROOT / "benchmarks"))  # last: it has a train.py, too


@pytest.fixture
def photo() -> np.ndarray:
    """Part of a sample photo: (48, 64, 3) in [0, 1]."""
    image = pytest.importorskip("PIL.Image").open(ROOT / "examples" / "city.png")
    return np.asarray(image.convert("RGB"), np.float32)[16:64, 32:96] / 255
