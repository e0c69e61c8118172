"""The hint of DoSSR's ControlNet under the names of diffusers.

DoSSR convolves the noisy latent and the hint's latent together, with one kernel for both. diffusers
convolves the noisy latent alone and adds an embedding of the hint, which is two convolutions with
SiLU between them. Since silu(v) - silu(-v) = v, the first of the two with rows of 1 and -1 and the
second with the hint's kernel and its negative give DoSSR's result. Nothing is rounded in the
weights, and ControlNetModel needs no change.
"""

from __future__ import annotations

import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.pytorch.state import State
from dossr_jax.weights import Lazy

_CONV = "conv_in.weight"
_EMBEDDING = "controlnet_cond_embedding."
_FIRST, _LAST = f"{_EMBEDDING}conv_in", f"{_EMBEDDING}conv_out"


def split_hint(state: State, channels: int) -> State:
    """Give the hint's half of the first kernel an embedding of its own.

    Args:
      state: a ControlNet whose first convolution takes latent and hint, `channels` each.
    """
    kernel = state.tensors[_CONV]
    width, _, *size = kernel.shape
    dtype = kernel.dtype
    signs = _signs(channels, dtype)

    def half(start: int) -> np.ndarray:
        return np.ascontiguousarray(kernel.load()[:, start : start + channels])

    def both() -> np.ndarray:
        hint = half(channels)
        return np.concatenate([hint, -hint], axis=1)

    def zeros(n: int) -> Lazy:
        return Lazy((n,), dtype, lambda: np.zeros(n, dtype))

    added = {
        _CONV: Lazy((width, channels, *size), dtype, lambda: half(0)),
        f"{_FIRST}.weight": Lazy(signs.shape, dtype, lambda: signs),
        f"{_FIRST}.bias": zeros(2 * channels),
        f"{_LAST}.weight": Lazy((width, 2 * channels, *size), dtype, both),
        f"{_LAST}.bias": zeros(width),
    }
    return State(state.source, {**state.tensors, **added}, state.doubled)


def join_hint(state: State, channels: int) -> State:
    """The inverse of :func:`split_hint`.

    Raises:
      UserError: a hint of another kind, such as an image.
    """
    kernel = state.shape(_CONV)
    first, last = (state.tensors.get(f"{name}.weight") for name in (_FIRST, _LAST))
    width, _, *size = kernel
    wanted = (2 * channels, channels, 3, 3), (width, 2 * channels, *size)
    found = first and first.shape, last and last.shape
    if first is None or last is None or found != wanted or not _is_split(state, first, last):
        raise UserError(
            f"{state.source}: its hint is not DoSSR's, the latent of an image, but one that is "
            "embedded by a network of its own (controlnet_cond_embedding); give a ControlNet that "
            "to_diffusers wrote, or none to start training with"
        )
    latent = state.tensors[_CONV]

    def load() -> np.ndarray:
        return np.concatenate([latent.load(), last.load()[:, :channels]], axis=1)

    others = state.select(lambda name: not name.startswith(_EMBEDDING))
    whole = Lazy((width, kernel[1] + channels, *size), latent.dtype, load)
    return State(state.source, {**others.tensors, _CONV: whole}, state.doubled)


def _signs(channels: int, dtype: np.dtype) -> np.ndarray:
    """The kernel (2c, c, 3, 3) that gives an image and its negative."""
    signs = np.zeros((2 * channels, channels, 3, 3), dtype)
    unit = np.eye(channels)
    signs[:, :, 1, 1] = np.concatenate([unit, -unit])
    return signs


def _is_split(state: State, first: Lazy, last: Lazy) -> bool:
    channels = first.shape[1]
    hint = last.load()
    biases = (state.tensors.get(f"{name}.bias") for name in (_FIRST, _LAST))
    extra = state.has(f"{_EMBEDDING}blocks.")
    return (
        not extra
        and all(bias is not None and not bias.load().any() for bias in biases)
        and np.array_equal(first.load(), _signs(channels, first.dtype))
        and np.array_equal(hint[:, :channels], -hint[:, channels:])
    )
