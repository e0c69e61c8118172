"""The text tower by itself: what depends on what, what is stored, which dtypes work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax.config import TextConfig
from dossr_jax.models.text_encoder import TextEncoder

TINY = TextConfig(
    vocab_size=50, context_length=12, width=32, layers=3, heads=4, skip_layers=1, projection_dim=16
)


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY.vocab_size, shape), jnp.int32)


def make(config=TINY, **options):
    return TextEncoder(config, rngs=nnx.Rngs(0), **options)


@pytest.fixture(scope="module")
def encode():
    return nnx.jit(make())


@pytest.mark.parametrize("position", [0, 1, 5, 11])
def test_a_later_token_never_changes_an_earlier_position(encode, position):
    before = tokens(2, 12)
    after = before.at[:, position].add(1) % TINY.vocab_size
    changed = np.asarray(encode(before) != encode(after)).any(-1)
    assert not changed[:, :position].any()
    assert changed[:, position:].all()


def test_what_follows_the_end_token_leaves_the_prompt_alone(encode):
    # Padding 0 or anything else: the prompt's own positions are the same, padding's are not.
    prompt = tokens(1, 5)
    zeros = encode(jnp.concatenate([prompt, jnp.zeros((1, 7), jnp.int32)], axis=1))
    other = encode(jnp.concatenate([prompt, tokens(1, 7, seed=1)], axis=1))
    np.testing.assert_array_equal(zeros[:, :5], other[:, :5])
    assert not np.allclose(zeros[:, 5:], other[:, 5:])
    # Unpadded: another shape, so another order of summation.
    np.testing.assert_allclose(encode(prompt), zeros[:, :5], atol=1e-5)


def test_rows_of_a_batch_are_independent(encode):
    batch = tokens(3, 12)
    single = jnp.concatenate([encode(row[None]) for row in batch])
    np.testing.assert_allclose(encode(batch), single, atol=1e-5)


def test_position_matters(encode):
    out = encode(jnp.full((1, 12), 7, jnp.int32))
    assert not np.allclose(out[:, 0], out[:, 1], atol=1e-3)


def test_exactly_the_skipped_blocks_and_the_projection_are_without_effect():
    model = make()

    def total(model):
        return jnp.sum(model(tokens(2, 12)) ** 3)

    grads = nnx.to_flat_state(nnx.grad(total)(model))
    without = {path for path, grad in grads if not np.any(grad[...])}
    last_block = {path for path, _ in grads if path[:2] == ("blocks", 2)}
    assert without == last_block | {("text_projection",), ("logit_scale",)}


def test_skipping_blocks_is_the_same_as_not_having_them():
    model, cut = make(), make(TextConfig(**{**vars(TINY), "layers": 2, "skip_layers": 0}))
    cut.blocks = model.blocks[:2]
    for name in ("token_embedding", "position_embedding", "norm_out"):
        setattr(cut, name, getattr(model, name))
    np.testing.assert_array_equal(model(tokens(1, 12)), cut(tokens(1, 12)))


def test_full_size_holds_what_the_checkpoint_holds():
    model = nnx.eval_shape(lambda: make(TextConfig()))
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    w = 1024
    block = {
        ("norm1", "scale"): (w,),
        ("norm1", "bias"): (w,),
        ("qkv", "kernel"): (w, 3 * w),
        ("qkv", "bias"): (3 * w,),
        ("out", "kernel"): (w, w),
        ("out", "bias"): (w,),
        ("norm2", "scale"): (w,),
        ("norm2", "bias"): (w,),
        ("expand", "kernel"): (w, 4 * w),
        ("expand", "bias"): (4 * w,),
        ("contract", "kernel"): (4 * w, w),
        ("contract", "bias"): (w,),
    }
    assert shapes == {
        ("token_embedding", "embedding"): (49408, w),
        ("position_embedding",): (77, w),
        ("norm_out", "scale"): (w,),
        ("norm_out", "bias"): (w,),
        ("text_projection",): (w, w),
        ("logit_scale",): (),
    } | {("blocks", i, *path): shape for i in range(24) for path, shape in block.items()}
    assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == 354_032_641


def test_projection_dim_0_stores_no_projection():
    model = make(TextConfig(**{**vars(TINY), "projection_dim": 0}))
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert names == {"token_embedding", "position_embedding", "blocks", "norm_out"}


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(encode, param_dtype):
    graphdef, _ = nnx.split(make(dtype=jnp.bfloat16, param_dtype=param_dtype))
    state = jax.tree.map(lambda leaf: leaf.astype(param_dtype), nnx.state(make()))
    out = nnx.jit(nnx.merge(graphdef, state))(tokens(2, 12))
    assert out.dtype == jnp.bfloat16
    # Outputs are normalised, and bfloat16 keeps 8 bits: 2^-8 an operation.
    error = np.asarray(out, np.float32) - encode(tokens(2, 12))
    assert np.sqrt(np.mean(error**2)) < 0.05


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        wide = make(dtype=jnp.float64, param_dtype=jnp.float64)
        out = wide(tokens(2, 12))
        assert out.dtype == jnp.float64
        graphdef, state = nnx.split(wide)
        # A perturbation below float32's resolution passes through every norm and softmax.
        nudged = jax.tree.map(lambda leaf: leaf * (1 + 1e-12), state)
        change = np.abs(np.asarray(nnx.merge(graphdef, nudged)(tokens(2, 12)) - out))
    assert 0 < np.median(change) < 1e-9
    assert np.mean(change > 0) > 0.99


def test_an_id_outside_the_vocabulary_shows(encode):
    bad = tokens(2, 12).at[0, 3].set(TINY.vocab_size)
    out = np.asarray(encode(bad))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
