"""Attention written as matrix products, whole and in blocks, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from dossr_jax.models import attention as module


def by_definition(q, k, v, causal=False):
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, v)


def operands(n, m, dtype, heads=3, d=8):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, length, heads, d)), dtype) for length in (n, m, m)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6), ("bfloat16", 2e-2)]
)
# 77 logits a block: one block, several full ones, and a last one that is padded.
@pytest.mark.parametrize(("n", "m"), [(7, 11), (28, 11), (45, 11), (5, 200)])
def test_plain_attention_is_attention(monkeypatch, dtype, tolerance, n, m):
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 77)
    with jax.enable_x64(dtype == "float64"):
        q, k, v = operands(n, m, dtype)
        out = module._plain_attention(q, k, v, causal=False)
        assert out.dtype == q.dtype
        np.testing.assert_allclose(
            np.asarray(out, np.float64), by_definition(q, k, v), atol=tolerance
        )


def test_causal():
    q, k, v = operands(9, 9, "float32")
    out = module.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out, by_definition(q, k, v, causal=True), atol=2e-6)


def test_images_may_share_their_keys():
    q, k, v = operands(6, 5, "float32")
    shared = module.attention(q, k[:1], v[:1])
    repeated = by_definition(q, jnp.repeat(k[:1], 2, 0), jnp.repeat(v[:1], 2, 0))
    np.testing.assert_allclose(shared, repeated, atol=2e-6)


def test_blocks_have_the_same_gradient(monkeypatch):
    with jax.enable_x64():
        operand = operands(20, 11, "float64")

        def loss(q, k, v):
            return (module._plain_attention(q, k, v, causal=False) ** 2).sum()

        whole = jax.grad(loss, argnums=(0, 1, 2))(*operand)
        monkeypatch.setattr(module, "_BLOCK_LOGITS", 77)
        blocks = jax.grad(loss, argnums=(0, 1, 2))(*operand)
        for a, b in zip(whole, blocks, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_equals_the_library():
    q, k, v = operands(13, 17, "float32")
    np.testing.assert_allclose(
        module.attention(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=1e-6
    )


def test_the_platform_that_is_compiled_for_decides():
    """One function, exported for three platforms in one process: a CPU loops over blocks."""
    shape = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)
    attend = jax.jit(lambda q, k, v: module.attention(q, k, v))

    def exported(*platforms):
        return export.export(attend, platforms=platforms)(shape, shape, shape).mlir_module()

    loops = {name: "stablehlo.while" in exported(name) for name in ("cpu", "cuda", "tpu")}
    assert loops == {"cpu": True, "cuda": False, "tpu": False}
    together = exported("cpu", "cuda", "tpu")
    assert "stablehlo.while" in together and "stablehlo.case" in together


def test_splash_attention_is_attention(monkeypatch):
    """TPUs' kernel, interpreted."""
    monkeypatch.setattr(module, "_SPLASH_BLOCK", 128)
    q, k, v = operands(256, 384, "float32", heads=2, d=64)
    out = module.splash_attention(q, k, v, interpret=True)
    np.testing.assert_allclose(out, by_definition(q, k, v), atol=2e-6)


def test_one_tpu_takes_splash_attention_for_many_positions():
    """Several cannot: XLA does not divide it among them."""

    def kernel(n, m, platform="tpu"):
        q, k = (jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16) for length in (n, m))
        attend = jax.jit(lambda q, k, v: module.attention(q, k, v))
        text = export.export(attend, platforms=[platform])(q, k, k).mlir_module()
        return "tpu_custom_call" in text

    with module.for_one_device():
        assert kernel(4096, 4096) and kernel(8192, 8192)
        assert not kernel(4096, 77) and not kernel(2048, 2048) and not kernel(4100, 4100)
        assert not kernel(4096, 4096, "cpu")
    assert not kernel(4096, 4096)
