"""Strictness for every test: silent broadcasting across ranks raises, hypothesis is fixed."""

from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Weights, configuration and reference outputs of the PyTorch release at reduced width."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden(golden_dir) -> np.lib.npyio.NpzFile:
    """Its reference outputs by name, read when asked for."""
    with np.load(golden_dir / "golden.npz") as arrays:
        yield arrays


@pytest.fixture
def x64():
    """Float64 inside the test: `pytestmark = pytest.mark.usefixtures("x64")` for a whole module."""
    with jax.enable_x64(True):
        yield
