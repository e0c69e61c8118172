"""Strictness for every test: silent broadcasting across ranks raises, hypothesis is fixed."""

from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Weights, configuration and reference outputs of the PyTorch release at reduced width."""
    return Path(__file__).parent / "data" / "golden"
