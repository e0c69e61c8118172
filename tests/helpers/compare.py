"""Random PyTorch networks, their weights in ours through the production converter, the error."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from dossr_jax import weights
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.weights import Lazy


def take_state(module: torch.nn.Module) -> State:
    """A module's parameters, each given up by the module once it has been read."""

    def entry(p):
        def load():
            array = p.detach().numpy()
            p.data = torch.empty(0)
            return array

        return Lazy(tuple(p.shape), np.dtype(np.float32), load)

    return State("PyTorch", {name: entry(p) for name, p in module.named_parameters()})


def build(make, table, state: State) -> nnx.Module:
    """Our module with PyTorch's weights, by the production table."""
    tensors = to_ours(table, state)
    module = weights.make_abstract(make)
    weights.fill(module, tensors, "PyTorch")
    return module


def run(fn, module: nnx.Module, *arrays) -> np.ndarray:
    """fn(module, *arrays) compiled, with images back in NCHW."""
    graphdef, state = nnx.split(module)
    jitted = jax.jit(lambda state, *args: fn(nnx.merge(graphdef, state), *args))
    return np.moveaxis(np.asarray(jitted(state, *map(jnp.asarray, arrays))), -1, 1)


def nchw(array: np.ndarray) -> torch.Tensor:
    """NHWC array as an NCHW tensor."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def relative_error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """Max abs difference / max abs value."""
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all() and theirs.std() > 1e-3
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
