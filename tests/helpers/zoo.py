"""Networks against stored outputs of the public code: their weights, outputs of layers, errors."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@contextlib.contextmanager
def taps_of(module: nnx.Module, paths: Iterable[str]) -> Iterator[dict[str, jax.Array]]:
    """Outputs of the layers at `paths` in a module, by path, while it is called."""
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)}
    names = {id(parts[path]): path for path in paths}
    taps = {}

    def recording(call):
        def recorded(self, *args):
            out = call(self, *args)
            if id(self) in names:
                taps[names[id(self)]] = out
            return out

        return recorded

    with pytest.MonkeyPatch.context() as patch:
        for layer in {type(parts[path]) for path in names.values()}:
            patch.setattr(layer, "__call__", recording(layer.__call__))
        yield taps


class Network:
    """A network with stored weights in one dtype; its functions are compiled once per shape."""

    def __init__(self, make, table: list[Row], state: State, dtype: str):
        module = weights.make_abstract(lambda rngs: make(dtype=dtype, param_dtype=dtype, rngs=rngs))
        weights.fill(module, to_ours(table, state), state.source)
        self.dtype = dtype
        self.graphdef, self.state = nnx.split(module)

    def compiled(self, fn, paths: Iterable[str] = ()):
        """fn(module, *images) of NCHW images -> (its result, outputs of layers by path), NHWC."""

        @jax.jit
        def run(state, *args):
            module = nnx.merge(self.graphdef, state)
            with taps_of(module, paths) as taps:
                return fn(module, *args), taps

        return lambda *args: run(self.state, *map(self.image, args))

    def image(self, array: np.ndarray) -> jax.Array:
        """NCHW -> NHWC in the dtype of the network; vectors of whole numbers as they are."""
        if array.ndim < 4:
            return jnp.asarray(array)
        return jnp.asarray(np.moveaxis(array, 1, -1), self.dtype)


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

    def check(self, name: str, array, index: int | None = None) -> None:
        """Compare, in units of the stored maximum, as much of a map as is stored.

        `index` chooses one of several maps that are stored under the name.
        """
        stored, array = self[name], np.asarray(array)
        stored = stored if index is None else stored[index]
        assert array.dtype == stored.dtype == self.dtype and np.isfinite(array).all(), name
        if stored.ndim == 3:  # tokens
            array = array.reshape(array.shape[0], -1, array.shape[-1])
            array = array[: stored.shape[0], :, : stored.shape[2]]
        elif stored.ndim == 4:
            array = np.moveaxis(array, -1, 1)[: stored.shape[0], : stored.shape[1]]
        assert array.shape == stored.shape, name
        error = np.abs(array - stored).max() / np.abs(stored).max()
        print(f"{name} {self.dtype}: {error:.1e}")
        assert error <= self.tolerance, name
