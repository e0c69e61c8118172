"""Text towers that come along, SD joined with a pre-restorer, and another pre-restorer."""

import numpy as np
import pytest
from helpers.checkpoints import Arrays, read_file, run, same, write_file

from dossr_jax import prompts, systems


@pytest.fixture(scope="module")
def with_tower(arrays) -> Arrays:
    """The golden checkpoint with a text tower of two layers, as the release's has one."""
    rng = np.random.default_rng(0)
    width, layers = 48, 2
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "text_projection": (width, 32),
        "logit_scale": (),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(layers):
        shapes |= {
            f"transformer.resblocks.{i}.{name}": shape
            for name, shape in {
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }.items()
        }
    tower = {
        f"cond_stage_model.model.{name}": rng.normal(size=shape, scale=0.2).astype(np.float16)
        for name, shape in shapes.items()
    }
    return {**arrays, **tower}


def test_a_kept_tower_goes_there_and_back_and_gives_the_embeddings(with_tower, tmp_path):
    write_file(tmp_path / "whole.safetensors", with_tower)
    options = ("--head-dim", "16", "--keep-text")
    assert run(tmp_path / "whole.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), with_tower)
    model = systems.load_model(tmp_path / "a.safetensors")
    texts = (model.config.prompt, model.config.negative_prompt)
    stored = np.stack([model.context[...], model.negative_context[...]])
    np.testing.assert_allclose(prompts.embed(model.text, texts), stored, atol=1e-5)


def test_without_the_tower_its_keys_are_left_out(with_tower, arrays, tmp_path, capsys):
    write_file(tmp_path / "whole.safetensors", with_tower)
    options = ("--head-dim", "16")
    assert run(tmp_path / "whole.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert "--keep-text" in capsys.readouterr().out
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert "no text tower" in capsys.readouterr().out
    assert same(read_file(tmp_path / "b.safetensors"), arrays)
    assert systems.load_model(tmp_path / "a.safetensors").text is None


def test_a_tower_with_another_vocabulary_cannot_embed_the_prompts(with_tower, tmp_path, capsys):
    name = "cond_stage_model.model.token_embedding.weight"
    write_file(tmp_path / "whole.safetensors", {**with_tower, name: with_tower[name][:50]})
    assert run(tmp_path / "whole.safetensors", tmp_path / "a.safetensors", "--head-dim", "16") == 2
    assert "the text tower knows 50 tokens" in capsys.readouterr().err


def test_straight_to_the_release_needs_no_embeddings_and_keeps_the_tower(with_tower, tmp_path):
    write_file(tmp_path / "whole.safetensors", with_tower)
    options = ("--head-dim", "16", "--to", "release")
    assert run(tmp_path / "whole.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert same(read_file(tmp_path / "a.safetensors"), with_tower)


def test_joining_copies_the_encoder_and_starts_at_zero(arrays, context_file, tmp_path, capsys):
    parts = ("model.diffusion_model.", "first_stage_model.", "betas", "alphas_cumprod")
    sd = {name: a for name, a in arrays.items() if name.startswith(parts)}
    sd["model_ema.decay"] = np.ones((), np.float32)
    rrdb = {
        name.removeprefix("preprocess_model."): a
        for name, a in arrays.items()
        if name.startswith("preprocess_model.")
    }
    write_file(tmp_path / "sd.safetensors", sd)
    write_file(tmp_path / "rrdb.safetensors", rrdb)
    options = ("--rrdb", tmp_path / "rrdb.safetensors", "--head-dim", "16")
    options += ("--context", context_file)
    assert run(tmp_path / "sd.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert "1 model_ema.* keys left out" in capsys.readouterr().out
    ours = read_file(tmp_path / "a.safetensors")
    model = systems.load_model(tmp_path / "a.safetensors")
    assert model.config.shared_encoder
    for name, array in ours.items():
        if name.startswith("control.zero"):
            assert not array.any() and array.dtype == np.float16
        elif name == "control.encoder.conv_in.kernel":
            np.testing.assert_array_equal(array[:, :, :4], ours[name.replace("control", "unet")])
            assert not array[:, :, 4:].any()
        elif name.startswith("control."):
            np.testing.assert_array_equal(array, ours[name.replace("control", "unet", 1)])
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    back = read_file(tmp_path / "b.safetensors")
    assert set(back) == set(arrays)
    for name in rrdb:
        np.testing.assert_array_equal(back[f"preprocess_model.{name}"], rrdb[name])
    for name in sd:
        assert name.startswith("model_ema") or (back[name] == sd[name]).all()


def test_a_dossr_checkpoint_takes_another_pre_restorer(arrays, converted, tmp_path):
    rrdb = {
        name.removeprefix("preprocess_model."): a + 1
        for name, a in arrays.items()
        if name.startswith("preprocess_model.")
    }
    write_file(tmp_path / "rrdb.safetensors", rrdb)
    options = ("--rrdb", tmp_path / "rrdb.safetensors", "--to", "release")
    assert run(converted, tmp_path / "a.safetensors", *options) == 0
    back = read_file(tmp_path / "a.safetensors")
    changed = {name for name in arrays if not np.array_equal(back[name], arrays[name])}
    assert changed == {f"preprocess_model.{name}" for name in rrdb}
