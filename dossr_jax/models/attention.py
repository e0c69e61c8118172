"""Attention, by the library that is best at it on each platform."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def attention(q: Array, k: Array, v: Array, *, causal: bool = False) -> Array:
    """Scaled dot-product attention, scale 1/sqrt(d).

    Args:
      q: (b, n, heads, d). k, v: (b, m, heads, d), or (1, m, heads, d), the same for all.
      causal: position i sees positions <= i only.

    Returns:
      (b, n, heads, d) in the dtype of q.
    """
    if k.shape[0] < q.shape[0]:
        # All positions of all images see the same keys: they are those of one image.
        return attention(q.reshape(1, -1, *q.shape[2:]), k, v).reshape(q.shape)
    plain = functools.partial(_plain_attention, causal=causal)
    if q.dtype == jnp.float64:
        return plain(q, k, v)
    library = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    cuda = _cudnn_attention if _suits_cudnn(q) and _finds_cudnn() else library
    tpu = library if causal or not _suits_splash(q, k) else splash_attention
    # The platform that the program is compiled for decides, not the one at hand while tracing.
    return jax.lax.platform_dependent(
        q, k, v, cpu=plain, cuda=functools.partial(cuda, is_causal=causal), tpu=tpu, default=library
    )


def _cudnn_attention(q: Array, k: Array, v: Array, *, is_causal: bool) -> Array:
    """:func:`attention` by cuDNN's flash kernel, which takes even lengths only."""
    cudnn = functools.partial(
        jax.nn.dot_product_attention, is_causal=is_causal, implementation="cudnn"
    )
    (b, n), m = q.shape[:2], k.shape[1]
    if n % 2 == m % 2 == 0:
        return cudnn(q, k, v)
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    queries, keys = (jnp.full(b, length, jnp.int32) for length in (n, m))
    return cudnn(q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys)[:, :n]


# Logits that fit a core's cache; more of them are computed block by block.
_BLOCK_LOGITS = 2**19


def _plain_attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """:func:`attention` in matrix products, softmax in float32 at least.

    jax.nn.dot_product_attention takes its softmax in float32 even in float64, and on a CPU writes
    out all logits: at 4096 positions it needs six times as long as this.
    """
    b, n, heads, d = q.shape
    compute = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.swapaxes(a, 1, 2).reshape(b * heads, -1, d) for a in (q, k, v))

    def rows(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=compute)
        logits = logits * d**-0.5
        if causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1).astype(v.dtype) @ v

    blocks = 1 if causal else -(-n * k.shape[1] // _BLOCK_LOGITS)
    if blocks == 1:
        out = rows(q, k, v)
    else:
        length = -(-n // blocks)
        q = jnp.pad(q, ((0, 0), (0, blocks * length - n), (0, 0)))
        q = q.reshape(b * heads * blocks, length, d)
        out = jax.lax.map(
            lambda i: rows(q[i], k[i // blocks], v[i // blocks]), jnp.arange(b * heads * blocks)
        )
        out = out.reshape(b * heads, blocks * length, d)[:, :n]
    return jnp.swapaxes(out.reshape(b, heads, n, d), 1, 2)


def _suits_cudnn(q: Array) -> bool:
    """cuDNN's flash kernel takes 16-bit heads of up to 128 in multiples of 8."""
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0


@functools.cache
def _finds_cudnn() -> bool:
    """Whether this installation can trace cuDNN's kernel; one for CPUs alone cannot."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(
            functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x
        )
    except RuntimeError:
        return False
    return True


# --- TPU ------------------------------------------------------------------------------------------

# Below, XLA's logits are few: 4096 positions are SD 2.1's at 512 px.
_SPLASH_POSITIONS = 4096
_SPLASH_BLOCK = 512

_one_device: ContextVar[bool] = ContextVar("one_device", default=False)


def _suits_splash(q: Array, k: Array) -> bool:
    """Whether there are many positions, which fill the kernel's blocks, of small heads."""
    lengths = q.shape[1], k.shape[1]
    if not _one_device.get() or q.shape[-1] > 128:
        return False
    return min(lengths) >= _SPLASH_POSITIONS and not any(n % _SPLASH_BLOCK for n in lengths)


@contextmanager
def for_one_device() -> Iterator[None]:
    """What is traced herein becomes a program for one device: it may use splash attention.

    XLA divides programs among devices, but not this kernel.
    """
    token = _one_device.set(True)
    try:
        yield
    finally:
        _one_device.reset(token)


def splash_attention(q: Array, k: Array, v: Array, *, interpret: bool = False) -> Array:
    """:func:`attention`, not causal, by JAX's splash kernel for TPUs, which writes no logits.

    Args:
      q: (b, n, heads, d). k, v: (b, m, heads, d); n and m are multiples of 512, d up to 128.
      interpret: run it on any platform, slowly, as tests do.
    """
    # Imported where there are so many positions: it takes a while.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.FullMask((q.shape[1], k.shape[1]))
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=splash.BlockSizes(block_q=_SPLASH_BLOCK, block_kv=_SPLASH_BLOCK),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    out: Any = jax.vmap(kernel)(q, k, v)
    return jnp.swapaxes(out, 1, 2)
