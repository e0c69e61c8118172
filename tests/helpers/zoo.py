"""Stored weights and outputs of the systems beside DoSSR, from the public code."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import Row
from dossr_jax.weights import Lazy

FOLDER = Path(__file__).parents[1] / "data" / "zoo"


def read_state(system: str) -> State:
    """The stored weights of a system at reduced width."""
    path = FOLDER / system / "weights.safetensors"
    return State(str(path), weights.read_safetensors(path)[0])


def full_size(system: str, prefix: str = "") -> State:
    """A checkpoint of the published size, of random bits that are drawn when they are read."""
    shapes = json.loads((FOLDER / system / "full_state_shapes.json").read_text())

    def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.integers(2**16, size=shape, dtype=np.uint16).view(np.float16)

    tensors = {
        name: Lazy(tuple(shape), np.dtype(np.float16), functools.partial(draw, i, tuple(shape)))
        for i, (name, shape) in enumerate(shapes.items())
    }
    return State("full size", tensors).below(prefix)


def assert_there_and_back(
    table: list[Row], state: State, make: Callable[[nnx.Rngs], nnx.Module]
) -> None:
    """A state becomes the parameters of the module that `make` builds, and again itself."""
    tensors = to_ours(table, state)
    shapes = {n: p.shape for n, p in weights.names_and_params(weights.make_abstract(make))}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    for name, tensor in tensors.items():
        assert tensor.load().shape == shapes[name]
    back = to_torch(table, State("ours", tensors))
    assert set(back) == set(state.tensors)
    for name, tensor in back.items():
        assert tensor.load().tobytes() == state.tensors[name].load().tobytes(), name


class Golden:
    """Stored outputs in one dtype, and the assertion that an array of ours is one of them."""

    def __init__(self, system: str, dtype: str, tolerance: float):
        with np.load(FOLDER / system / "golden.npz") as arrays:
            self.arrays = dict(arrays)
        self.dtype, self.tolerance = dtype, tolerance

    def __getitem__(self, name: str) -> np.ndarray:
        """As the run in this dtype has it."""
        exact = f"{name}__f64"
        return self.arrays[exact if self.dtype == "float64" and exact in self.arrays else name]

    def check(self, name: str, array) -> None:
        """Compare an image or a latent, (b, h, w, c), in units of the stored maximum."""
        stored, array = self[name], np.moveaxis(np.asarray(array), -1, 1)
        assert array.dtype == stored.dtype == self.dtype and np.isfinite(array).all(), name
        assert array.shape == stored.shape, name
        error = np.abs(array - stored).max() / np.abs(stored).max()
        assert error <= self.tolerance, name
