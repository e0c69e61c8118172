"""Attention inside windows of a feature map: the blocks of Swin, as SwinIR and ResShift use them.

Every other block shifts its windows by half a window; the map is rolled, so that windows at its
ends hold tokens from opposite sides. Region labels say which tokens of a window see each other.
They are NumPy arrays for the size of the map at hand: constants of the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax.models.layers import Dtype, Factory

# Added to the logits of tokens that do not see each other; trained with this, not with -infinity.
_HIDDEN = -100.0
_BIAS_DEVIATION = 0.02


def position_index(window: int) -> np.ndarray:
    """Row of the bias table for every query and key of a window: (window^2, window^2) int32.

    The table goes through row differences, query - key, from 1 - window to window - 1, and for
    each of them through column differences.
    """
    rows, columns = np.divmod(np.arange(window**2, dtype=np.int32), window)
    row_steps, column_steps = (a[:, None] - a[None, :] + window - 1 for a in (rows, columns))
    return row_steps * (2 * window - 1) + column_steps


def band_regions(h: int, w: int, window: int) -> np.ndarray:
    """Region labels of shifted windows: Swin's three bands of rows times three of columns.

    Returns:
      (windows, window^2) int32 for a map of h x w that is already rolled.
    """

    def bands(side: int) -> np.ndarray:
        ends = side - window, side - window // 2
        return np.searchsorted(ends, np.arange(side), side="right").astype(np.int32)

    labels = 3 * bands(h)[:, None] + bands(w)[None, :]
    labels = labels.reshape(h // window, window, w // window, window)
    return labels.transpose(0, 2, 1, 3).reshape(-1, window**2)


def half_regions(h: int, w: int, window: int) -> np.ndarray:
    """Region labels of shifted windows as ResShift was trained with; returns as band_regions.

    In the last row of windows the left and the right half of a window do not see each other;
    everywhere else all tokens do, even those that the roll brought from the opposite side.
    """
    labels = np.zeros((h // window, w // window, window, window), np.int32)
    labels[-1, :, :, window // 2 :] = 1
    return labels.reshape(-1, window**2)


def split_windows(x: Array, window: int) -> Array:
    """Map (b, h, w, c) -> its windows (b, windows, window^2, c), row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window**2, c)


def merge_windows(x: Array, h: int, w: int, window: int) -> Array:
    """Inverse of :func:`split_windows`: (b, windows, window^2, c) -> (b, h, w, c)."""
    b, c = x.shape[0], x.shape[-1]
    x = x.reshape(b, h // window, w // window, window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


def region_mask(regions: Array, dtype: Dtype) -> Array:
    """Region labels (windows, n) -> what is added to the logits, (windows, n, n).

    It is made in the program: it is n times as large as the labels.
    """
    hidden = regions[:, :, None] != regions[:, None, :]
    return jnp.where(hidden, jnp.asarray(_HIDDEN, dtype), jnp.zeros((), dtype))


class WindowAttention(nnx.Module):
    """Multi-head self-attention in windows, with a learned bias for every relative position."""

    def __init__(self, make: Factory, dim: int, *, heads: int, window: int):
        self.heads, self.window = heads, window
        self.qkv = make.linear(dim, 3 * dim)
        self.position_bias = make.normal(((2 * window - 1) ** 2, heads), _BIAS_DEVIATION)
        self.proj = make.linear(dim, dim)

    def __call__(self, x: Array, regions: np.ndarray | None = None) -> Array:
        """Attend within windows.

        Args:
          x: (b, h, w, dim), h and w multiples of the window.
          regions: labels (windows, window^2) for windows shifted by half of one; None: unshifted.

        Returns:
          (b, h, w, dim).
        """
        b, h, w, dim = x.shape
        half = self.window // 2
        if regions is not None:
            x = jnp.roll(x, (-half, -half), axis=(1, 2))
        qkv = self.qkv(split_windows(x, self.window))
        qkv = qkv.reshape(*qkv.shape[:3], 3, self.heads, dim // self.heads)
        q, k, v = jnp.moveaxis(qkv, 3, 0)
        out = self._attend(q, k, v, regions)
        x = merge_windows(self.proj(out.reshape(b, -1, self.window**2, dim)), h, w, self.window)
        return x if regions is None else jnp.roll(x, (half, half), axis=(1, 2))

    def _attend(self, q: Array, k: Array, v: Array, regions: np.ndarray | None) -> Array:
        """q, k, v (b, windows, n, heads, d) -> the same; softmax in float32 at least."""
        compute = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("bwqhd,bwkhd->bwhqk", q, k, preferred_element_type=compute)
        bias = self.position_bias[...].astype(compute)[position_index(self.window)]
        logits = logits * q.shape[-1] ** -0.5 + bias.transpose(2, 0, 1)[None, None]
        if regions is not None:
            logits = logits + region_mask(jnp.asarray(regions), compute)[None, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bwhqk,bwkhd->bwqhd", weights, v)


class MLP(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, make: Factory, dim: int, hidden: int):
        self.fc1 = make.linear(dim, hidden)
        self.fc2 = make.linear(hidden, dim)

    def __call__(self, x: Array) -> Array:
        # jax.nn.gelu defaults to the tanh approximation; the weights were trained with erf.
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class WindowBlock(nnx.Module):
    """Window attention and MLP, each pre-normed and residual. `norm` makes a norm of `dim`."""

    def __init__(
        self,
        make: Factory,
        dim: int,
        *,
        heads: int,
        window: int,
        mlp_ratio: int,
        norm: Callable[[int], nnx.LayerNorm | nnx.GroupNorm],
    ):
        self.norm1 = norm(dim)
        self.attn = WindowAttention(make, dim, heads=heads, window=window)
        self.norm2 = norm(dim)
        self.mlp = MLP(make, dim, mlp_ratio * dim)

    def __call__(self, x: Array, regions: np.ndarray | None = None) -> Array:
        """(b, h, w, dim) -> the same; `regions` as in :class:`WindowAttention`."""
        x = x + self.attn(self.norm1(x), regions)
        return x + self.mlp(self.norm2(x))
