"""What tests of conversion share: files of arrays, and the command."""

from pathlib import Path

import numpy as np

from dossr_jax import weights
from dossr_jax.convert.__main__ import main

Arrays = dict[str, np.ndarray]


def read_file(path: Path) -> Arrays:
    tensors, _ = weights.read_safetensors(path)
    return {name: tensor.load() for name, tensor in tensors.items()}


def write_file(path: Path, arrays: Arrays) -> Path:
    weights.write_safetensors(path, arrays)
    return path


def same(a: Arrays, b: Arrays) -> bool:
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


def run(*arguments) -> int:
    """The command line; returns its exit status."""
    return main([str(a) for a in arguments])


def assert_one_line(error: str, *words: str) -> None:
    """All there is on stderr is one error that says what it should."""
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
