"""What cannot be converted is one line that says why, and leaves nothing behind."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import Arrays, assert_one_line, run, write_file

from dossr_jax.config import DoSSRConfig, VAEConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.systems.dossr.release import check_release_shape, read_release


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
            "neither a checkpoint of DoSSR",
        ),
        "integers": (
            change("int4", **{key: arrays[key].view(np.uint16)[..., :0].astype("u1")}),
            "misshapen",
        ),
        "no such file": (folder / "nothing.safetensors", "no such file"),
        "no such pickle": (folder / "nothing.ckpt", "no such file"),
        "other suffix": (folder / "weights.h5", "not a checkpoint by its content or its name"),
        "empty folder": (folder / "empty", "neither a diffusers folder"),
    }
    (folder / "empty").mkdir()
    (folder / "weights.h5").write_bytes(b"\x89HDF\r\n")
    data = whole.read_bytes()
    for name, content in {
        "truncated": data[: len(data) // 2],
        "truncated header": data[:1000],
        "longer": data + b"\0",
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
        assert_one_line(printed.err, says, path.name)
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
    assert_one_line(capsys.readouterr().err, says)
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


def test_a_folder_that_fails_halfway_is_named_itself(converted, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(converted, tmp_path / "folder", "--to", "diffusers") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/folder/unet/") and "No space left" in error
    assert not list(tmp_path.iterdir())


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
            assert_one_line(capfd.readouterr().err)
            assert not (tmp_path / "a.safetensors").exists()
        path.write_bytes(data)
    assert run(folder, tmp_path / "a.safetensors") == 0


def test_our_own_files_keep_their_configuration(converted, tmp_path, capsys):
    assert run(converted, tmp_path / "a.safetensors", "--head-dim", "8") == 2
    assert "carries its configuration" in capsys.readouterr().err


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


def test_networks_that_pytorch_has_not_are_not_written_as_its_own():
    check_release_shape(DoSSRConfig())
    with pytest.raises(UserError, match="folds pixels into channels"):
        check_release_shape(DoSSRConfig(vae=VAEConfig(patch_size=2)))
