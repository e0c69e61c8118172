"""The golden checkpoint, as it came and converted, and a smaller model of ours."""

from pathlib import Path

import pytest
from helpers.checkpoints import Arrays, read_file
from helpers.models import tiny_model

from dossr_jax import systems
from dossr_jax.convert.__main__ import main


@pytest.fixture(scope="session")
def arrays(golden_dir) -> Arrays:
    """The golden checkpoint."""
    return read_file(golden_dir / "weights.safetensors")


@pytest.fixture(scope="session")
def context_file(golden_dir) -> Path:
    """Its prompt embeddings."""
    return golden_dir / "golden.npz"


@pytest.fixture(scope="session")
def converted(golden_dir, tmp_path_factory) -> Path:
    """The golden checkpoint as a file of ours."""
    path = tmp_path_factory.mktemp("converted") / "golden.safetensors"
    assert main([str(golden_dir), str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """A model of ours in one file."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    systems.save_model(path, tiny_model())
    return path
