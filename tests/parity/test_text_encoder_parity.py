"""The text tower against PyTorch's CLIPTextModel of `transformers`, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax.config import TextConfig
from dossr_jax.models.text_encoder import TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def make_torch(config, dtype):
    model = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context_length,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
            # "eager" takes its softmax in float32 whatever the dtype is.
            attn_implementation="sdpa",
        )
    )
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        # Everything contributes: biases are not zero, gains not one, attention not uniform.
        scale = 0.2 if p.ndim == 1 or "embedding" in name else p.shape[1] ** -0.5
        p.data.normal_(generator=generator).mul_(scale)
        if "norm" in name and name.endswith("weight"):
            p.data.add_(1)
    return model.to(dtype).eval()


@torch.no_grad()
def torch_output(model, config, tokens):
    out = model(torch.from_numpy(tokens).long(), output_hidden_states=True)
    hidden = out.hidden_states[config.layers - config.skip_layers]
    norm = model.get_submodule(
        next(name for name, _ in model.named_modules() if name.endswith("final_layer_norm"))
    )
    return norm(hidden).numpy()


def weights(model, config):
    """Yield (path, array) for each parameter of the tower; `model` gives its own copy up."""
    source = {name.removeprefix("text_model."): p for name, p in model.named_parameters()}

    def take(*names, transpose=False):
        parts = [source.pop(name) for name in names]
        array = np.concatenate([part.detach().numpy() for part in parts])
        for part in parts:
            part.data = part.data.new_empty(0)
        return array.T if transpose else array

    yield ("token_embedding", "embedding"), take("embeddings.token_embedding.weight")
    yield ("position_embedding",), take("embeddings.position_embedding.weight")
    linears = {
        "qkv": [f"self_attn.{x}_proj" for x in "qkv"],
        "out": ["self_attn.out_proj"],
        "expand": ["mlp.fc1"],
        "contract": ["mlp.fc2"],
    }
    norms = {"norm1": "layer_norm1", "norm2": "layer_norm2"}
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        for ours, theirs in linears.items():
            kernel = take(*(f"{layer}.{name}.weight" for name in theirs), transpose=True)
            yield ("blocks", i, ours, "kernel"), kernel
            yield ("blocks", i, ours, "bias"), take(*(f"{layer}.{name}.bias" for name in theirs))
        for ours, theirs in norms.items():
            yield ("blocks", i, ours, "scale"), take(f"{layer}.{theirs}.weight")
            yield ("blocks", i, ours, "bias"), take(f"{layer}.{theirs}.bias")
    yield ("norm_out", "scale"), take("final_layer_norm.weight")
    yield ("norm_out", "bias"), take("final_layer_norm.bias")
    assert not source


def split_jax(config, dtype, arrays):
    abstract = nnx.eval_shape(
        lambda: TextEncoder(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(abstract)
    slots = dict(nnx.to_flat_state(state))
    filled = {}
    for path, array in arrays:
        slot = slots.pop(path)
        assert slot.shape == array.shape, path
        filled[path] = slot.replace(jnp.asarray(array, dtype))
    assert not slots
    return graphdef, nnx.from_flat_state(filled)


def relative_error(config, name):
    """Maximum error over maximum magnitude, between the two towers in the dtype called `name`."""
    reference = make_torch(config, getattr(torch, name))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (2, config.context_length), np.int32)
    expected = torch_output(reference, config, tokens)
    graphdef, state = split_jax(config, getattr(jnp, name), weights(reference, config))
    # Not nnx.jit, which returns the state too: at full size, another 1.4 GB.
    encode = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))
    out = np.asarray(encode(state, jnp.asarray(tokens)))
    assert out.dtype == expected.dtype == np.dtype(name)
    return np.abs(out - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("skip_layers", [0, 1, 2])
# Rounding alone: 2^-23 and 2^-52 over a few dozen operations in a row.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-12)])
def test_small(skip_layers, dtype, tolerance):
    config = TextConfig(
        vocab_size=100, width=64, layers=4, heads=4, skip_layers=skip_layers, projection_dim=0
    )
    with jax.enable_x64(dtype == "float64"):
        assert relative_error(config, dtype) < tolerance


@pytest.mark.slow
@pytest.mark.alone
def test_full_size():
    # 23 blocks and sums of up to 4096 terms in float32.
    assert relative_error(TextConfig(projection_dim=0), "float32") < 2e-5
