"""Checkpoints of the release: every key there and back bit for bit, or one error that lists all."""

import pickle
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from models import tiny_model

from dossr_jax import prompts, weights
from dossr_jax.convert import config_from_release_yaml, load_release
from dossr_jax.convert.__main__ import main
from dossr_jax.convert.readers import read_checkpoint
from dossr_jax.convert.release import export_release, read_release
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.errors import UserError

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays(golden_dir) -> Arrays:
    """The golden checkpoint."""
    return read_file(golden_dir / "weights.safetensors")


@pytest.fixture(scope="module")
def context_file(golden_dir) -> Path:
    return golden_dir / "golden.npz"


@pytest.fixture(scope="module")
def converted(golden_dir, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "golden.safetensors"
    assert main([str(golden_dir), str(path)]) == 0
    return path


def read_file(path: Path) -> Arrays:
    file = weights.SafetensorsFile(path)
    return {name: file.read(name) for name in file.names}


def write_file(path: Path, arrays: Arrays) -> Path:
    weights.write_safetensors(path, arrays, arrays.__getitem__)
    return path


def same(a: Arrays, b: Arrays) -> bool:
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


def run(*arguments) -> int:
    return main([str(a) for a in arguments])


def test_golden_there_and_back(arrays, converted, tmp_path):
    assert run(converted, tmp_path / "back.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "back.safetensors"), arrays)


def test_golden_there_and_back_through_orbax(golden_dir, arrays, converted, tmp_path):
    assert run(golden_dir, tmp_path / "orbax", "--to", "orbax") == 0
    assert run(tmp_path / "orbax", tmp_path / "back.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "back.safetensors"), arrays)
    assert run(tmp_path / "orbax", tmp_path / "ours.safetensors") == 0
    assert same(read_file(tmp_path / "ours.safetensors"), read_file(converted))


def test_every_dtype_is_kept(arrays, context_file, tmp_path):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    mixed = {k: a.astype(kinds[i % 4]) for i, (k, a) in enumerate(arrays.items())}
    write_file(tmp_path / "mixed.safetensors", mixed)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "mixed.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), mixed)


def test_pickle_gives_the_same_file(arrays, context_file, golden_dir, converted, tmp_path):
    tensors = {f"module.{name}": torch.from_numpy(a) for name, a in arrays.items()}
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "model.ckpt")
    options = ("--config", golden_dir / "config.yaml", "--context", context_file)
    assert run(tmp_path / "model.ckpt", tmp_path / "a.safetensors", *options) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == converted.read_bytes()


def test_dtype_option_casts_weights_and_not_buffers(arrays, converted, tmp_path):
    assert run(converted, tmp_path / "a.safetensors", "--dtype", "bfloat16") == 0
    cast = read_file(tmp_path / "a.safetensors")
    for name, array in read_file(converted).items():
        kind = array.dtype if name.startswith("buffers.") else ml_dtypes.bfloat16
        assert cast[name].dtype == kind
        assert (cast[name] == array.astype(kind)).all()


def test_configuration_from_keys_equals_the_yaml_files(golden_dir):
    state = read_checkpoint(golden_dir / "weights.safetensors")
    yaml_config = config_from_release_yaml(golden_dir / "config.yaml")
    assert read_release(state, config=yaml_config).config == read_release(state, head_dim=16).config


def test_a_shifting_sequence_is_recognised_by_its_buffer(arrays, golden_dir):
    state = read_checkpoint(golden_dir / "weights.safetensors")
    for t1, name in ((500, "trunc_12"), (333, "trunc_13"), (666, "trunc_23")):
        eta = np.ones(1000)
        eta[:t1] = (1 - np.cos(np.pi * np.linspace(0.001, 0.999, t1))) / 2
        array = eta.astype(np.float32)
        tensors = {
            **state.tensors,
            "lambdas": type(state.tensors["betas"])(
                array.shape, array.dtype, lambda array=array: array
            ),
        }
        other = type(state)(state.source, tensors)
        assert read_release(other, head_dim=16).config.process.eta == name


def test_loading_directly_equals_loading_the_converted_file(golden_dir, converted):
    with np.load(golden_dir / "golden.npz") as npz:
        context, negative = npz["context"], npz["context_neg"]
    direct = load_release(
        golden_dir / "weights.safetensors",
        golden_dir / "config.yaml",
        context=context,
        negative_context=negative,
    )
    stored = weights.load_model(converted)
    assert direct.config == stored.config
    pairs = zip(weights.names_and_params(direct), weights.names_and_params(stored), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == jnp.float32
        np.testing.assert_array_equal(a[...], b[...])
    np.testing.assert_array_equal(direct.context[...], context[0])
    np.testing.assert_array_equal(direct.negative_context[...], negative[0])


def test_equal_encoders_are_kept_once(arrays, context_file, tmp_path):
    twin = dict(arrays)
    for name in arrays:
        if name.startswith("cond_encoder."):
            twin[name] = arrays[name.replace("cond_encoder.", "first_stage_model.")]
    write_file(tmp_path / "twin.safetensors", twin)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "twin.safetensors", tmp_path / "a.safetensors", *options) == 0
    file = weights.SafetensorsFile(tmp_path / "a.safetensors")
    assert weights.read_config(file.path, file.metadata).shared_encoder
    assert not [name for name in file.names if name.startswith("hint_encoder")]
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), twin)


def test_encoders_of_one_value_and_two_dtypes_are_kept_apart(arrays, context_file, tmp_path):
    twin = dict(arrays)
    for name in arrays:
        if name.startswith("cond_encoder."):
            other = arrays[name.replace("cond_encoder.", "first_stage_model.")]
            twin[name] = other.astype(np.float32)
    write_file(tmp_path / "twin.safetensors", twin)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "twin.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), twin)


def test_absent_buffers_are_computed(arrays, golden_dir, tmp_path):
    bare = {name: a for name, a in arrays.items() if "." in name}
    state = read_checkpoint(write_file(tmp_path / "bare.safetensors", bare))
    model = read_release(state, config=config_from_release_yaml(golden_dir / "config.yaml"))
    exported = {name: tensor.load() for name, tensor in export_release(model).items()}
    assert set(exported) - set(bare) == set(release_buffers(model.config.process))
    np.testing.assert_allclose(exported["lambdas"], arrays["lambdas"], rtol=1e-6)


# --- the text tower


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
    model = weights.load_model(tmp_path / "a.safetensors")
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
    assert weights.load_model(tmp_path / "a.safetensors").text is None


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


# --- the first DoSSR from SD and a pre-restorer


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
    model = weights.load_model(tmp_path / "a.safetensors")
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


# --- bad inputs


class Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


def bad_inputs(arrays: Arrays, folder: Path) -> dict[str, tuple[Path, str]]:
    """Kind -> (file, what its error has to say)."""
    key = "model.diffusion_model.input_blocks.0.0.weight"
    whole = write_file(folder / "whole.safetensors", arrays)

    def change(name: str, drop: tuple[str, ...] = (), **changes: np.ndarray) -> Path:
        kept = {k: a for k, a in arrays.items() if k not in drop}
        return write_file(folder / f"{name}.safetensors", {**kept, **changes})

    several = change(
        "several",
        ("control_model.zero_convs.3.0.bias",),
        **{
            key.replace("0.0", "1.0.out_layers.3"): np.zeros((32, 5, 3, 3), np.float16),
            "control_model.zero_convs.99.0.bias": np.zeros(3, np.float16),
            "module.control_model.zero_convs.4.0.bias": np.zeros(64, np.float16),
        },
    )
    cases = {
        "missing": (
            change("missing", ("first_stage_model.quant_conv.bias",)),
            "missing first_stage_model.quant_conv.bias (8,)",
        ),
        "extra": (change("extra", **{"loss.weight": np.zeros(3)}), "extra loss.weight (3,)"),
        "extra without a dot": (change("undotted", weight=np.zeros(3)), "extra weight (3,)"),
        "misshapen": (
            change("misshapen", **{key: np.zeros((32, 4, 1, 1), np.float16)}),
            f"misshapen {key}: file (32, 4, 1, 1), expected (32, 4, 3, 3)",
        ),
        "several": (several, "1 missing, 1 extra, 1 doubled, 1 misshapen"),
        "no unet": (
            change("no_unet", tuple(k for k in arrays if k.startswith("model."))),
            "has no input_blocks.0.0.weight",
        ),
        "other network": (
            write_file(folder / "other.safetensors", {"fc.weight": np.ones(3)}),
            "neither a DoSSR nor an SD 2.x checkpoint",
        ),
        "integers": (
            change("int4", **{key: arrays[key].view(np.uint16)[..., :0].astype("u1")}),
            "misshapen",
        ),
        "no such file": (folder / "nothing.safetensors", "no such file"),
        "no such pickle": (folder / "nothing.ckpt", "no such file"),
        "other suffix": (folder / "weights.h5", "not a checkpoint by its name"),
        "empty folder": (folder / "empty", "neither a diffusers folder"),
    }
    (folder / "empty").mkdir()
    data = whole.read_bytes()
    for name, content in {
        "truncated": data[: len(data) // 2],
        "truncated header": data[:1000],
        "longer": data + b"\0",
        "empty": b"",
        "text": b"no weights here\n" * 9,
        "zeros": bytes(1000),
        "list": (2).to_bytes(8, "little") + b"[]",
    }.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        cases[name] = (path, "not a whole .safetensors file")
    tensors = {name: torch.from_numpy(a) for name, a in list(arrays.items())[:9]}
    for name, content, says in (
        ("evil", {"state_dict": tensors, "x": Evil()}, "would run code"),
        ("number", 3, "holds a int"),
        ("mixture", {"a": torch.ones(3), "epoch": 3}, "holds epoch"),
        ("sparse", {"a": torch.eye(3).to_sparse()}, "a is of torch.float32"),
    ):
        torch.save(content, folder / f"{name}.ckpt")
        cases[f"pickle: {name}"] = (folder / f"{name}.ckpt", says)
    torch.save(tensors, folder / "cut.pth")
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:5000])
    (folder / "plain.pth").write_bytes(pickle.dumps(Evil()))
    (folder / "text.ckpt").write_bytes(b"no weights here\n" * 9)
    cases["pickle: truncated"] = (folder / "cut.pth", "not a whole PyTorch checkpoint")
    cases["pickle: plain"] = (folder / "plain.pth", "PyTorch checkpoint")
    cases["pickle: text"] = (folder / "text.ckpt", "not a PyTorch checkpoint")
    return cases


def test_every_bad_input_is_one_line_and_leaves_nothing(arrays, context_file, tmp_path, capfd):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "bad").mkdir()
    for kind, (path, says) in bad_inputs(arrays, tmp_path / "bad").items():
        target = out / "a.safetensors"
        assert run(path, target, "--head-dim", "16", "--context", context_file) == 2, kind
        printed = capfd.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, (kind, printed)
        assert says in printed.err, (kind, printed.err)
        assert path.name in printed.err, kind
        assert "never be printed" not in printed.out
        assert not list(out.iterdir()), kind


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--context FILE.npz"),
        (("--context", "nothing.npz"), "no such file"),
        (("--context", "text.npz"), "not a whole .npz file"),
        (("--context", "names.npz"), "has no array context and context_neg"),
        (("--context", "narrow.npz"), "must be (tokens, 48)"),
        (("--context", "ids.npz"), "an embedding is a float array"),
        (("--keep-text",), "has no text tower"),
        (("--head-dim", "64"), "--head-dim"),
        (("--config", "nothing.yaml"), "no such file"),
        (("--config", "text.npz"), "is no mapping"),
        (("--config", "part.yaml"), "params.unet_config: it is missing"),
        (("--config", "wide.yaml"), "misshapen"),
        (("--config", "word.yaml"), "correct the file"),
        (("--rrdb", "nothing.pth"), "no such file"),
        (("--to", "diffusers", "--dtype", "float16", "--rrdb", "text.npz"), "not a checkpoint"),
    ],
)
def test_bad_options(golden_dir, arrays, tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("no arrays here\n")
    np.savez("names.npz", a=np.ones(3))
    np.savez("narrow.npz", context=np.ones((77, 5)), context_neg=np.ones((77, 5)))
    np.savez("ids.npz", context=np.ones((77, 48), int), context_neg=np.ones((77, 48), int))
    text = (golden_dir / "config.yaml").read_text()
    Path("part.yaml").write_text("params: {timesteps: 1000}")
    Path("word.yaml").write_text(text.replace("model_channels: 32", "model_channels: wide"))
    Path("wide.yaml").write_text(text.replace("model_channels: 32", "model_channels: 64"))
    if "--head-dim" not in options and "--config" not in options:
        options = (*options, "--head-dim", "16")
    path = golden_dir / "weights.safetensors"
    assert run(path, "a.safetensors", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not Path("a.safetensors").exists()


def test_nothing_is_replaced_unasked(golden_dir, converted, tmp_path, capsys):
    target = tmp_path / "a.safetensors"
    target.write_text("precious")
    assert run(golden_dir, target) == 2
    assert "--overwrite" in capsys.readouterr().err and target.read_text() == "precious"
    assert run(golden_dir, target, "--overwrite") == 0
    assert target.read_bytes() == converted.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").write_text("")
    assert run(golden_dir, folder, "--to", "orbax", "--overwrite") == 2
    assert "something else in it" in capsys.readouterr().err and (folder / "precious").exists()
    assert run(golden_dir, folder, "--overwrite") == 2
    assert run(golden_dir, tmp_path / "model.bin") == 2
    assert "model.bin.safetensors" in capsys.readouterr().err
    assert run(golden_dir, tmp_path / "no" / "a.safetensors") == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_failed_overwrite_leaves_the_old_file(converted, tmp_path, monkeypatch, capsys):
    target = tmp_path / "a.safetensors"
    target.write_bytes(converted.read_bytes())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(converted, target, "--overwrite", "--dtype", "float32") == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert target.read_bytes() == converted.read_bytes() and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_seen_beforehand(converted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    for to, name in {
        "dossr": "a.safetensors",
        "orbax": "a",
        "release": "a.safetensors",
        "diffusers": "a",
    }.items():
        assert run(converted, tmp_path / name, "--to", to) == 2
        assert "are free" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_folders_are_replaced_whole(converted, tmp_path):
    for to in ("orbax", "diffusers"):
        folder = tmp_path / to
        assert run(converted, folder, "--to", to) == 0
        before = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix)
        assert run(converted, folder, "--to", to, "--overwrite") == 0
        assert sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diffusers", "orbax"]


def test_a_damaged_orbax_folder_is_one_line(converted, tmp_path, capfd):
    folder = tmp_path / "orbax"
    assert run(converted, folder, "--to", "orbax") == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        for content in (None, data[: len(data) // 2]):
            path.unlink() if content is None else path.write_bytes(content)
            capfd.readouterr()
            assert run(folder, tmp_path / "a.safetensors") == 2, path
            error = capfd.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1, (path, error)
            assert not (tmp_path / "a.safetensors").exists()
        path.write_bytes(data)
    assert run(folder, tmp_path / "a.safetensors") == 0


def test_our_own_files_keep_their_configuration(converted, tmp_path, capsys):
    assert run(converted, tmp_path / "a.safetensors", "--head-dim", "8") == 2
    assert "carries its configuration" in capsys.readouterr().err


def test_networks_that_pytorch_lacks_cannot_be_exported(tmp_path, capsys):
    weights.save_model(tmp_path / "tiny.safetensors", tiny_model())
    for to, name in (("release", "a.safetensors"), ("diffusers", "a")):
        assert run(tmp_path / "tiny.safetensors", tmp_path / name, "--to", to) == 2
        assert "cannot be written in that form" in capsys.readouterr().err


def test_errors_name_every_key_at_once(arrays, golden_dir, tmp_path):
    kept = {name: a for name, a in arrays.items() if not name.startswith("control_model.zero")}
    state = read_checkpoint(write_file(tmp_path / "a.safetensors", kept))
    with pytest.raises(UserError) as error:
        read_release(state, head_dim=16)
    for i in range(12):
        assert f"missing control_model.zero_convs.{i}.0.weight" in str(error.value)
        assert f"missing control_model.zero_convs.{i}.0.bias" in str(error.value)


def test_pickles_of_lightning_are_read_without_it(tmp_path):
    # Old Lightning checkpoints name callback classes as keys.
    callback = type("ModelCheckpoint", (), {})
    callback.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
    module = type(pickle)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = callback
    import sys

    names = ["pytorch_lightning", "pytorch_lightning.callbacks", callback.__module__]
    for name in names:
        sys.modules[name] = module
    try:
        content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: {"best": 1}}}
        torch.save(content, tmp_path / "a.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    state = read_checkpoint(tmp_path / "a.ckpt")
    np.testing.assert_array_equal(state.tensors["a"].load(), np.ones(2, np.float32))
