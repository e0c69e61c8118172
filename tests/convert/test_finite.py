"""Weights with NaN or infinity are refused by file and name, wherever they are read."""

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_one_line, read_file, run, write_file
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dossr_jax import systems, weights
from dossr_jax.errors import UserError
from dossr_jax.systems.dossr.release import load_release
from dossr_jax.systems.rrdb import preprocessor

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SAYS = "has NaN or infinity in it"
KEY = "model.diffusion_model.out.2.bias"


@pytest.mark.parametrize("kind", FLOATS)
@given(bits=hnp.arrays(np.uint64, st.integers(0, 5)))
def test_finite_is_every_pattern_of_bits_that_is_a_number(kind, bits):
    size = np.dtype(kind).itemsize
    array = (bits >> np.uint64(64 - 8 * size)).astype(f"u{size}").view(kind)
    expected = bool(np.isfinite(array.astype(np.float64)).all())
    assert weights.is_finite(array) == expected
    assert weights.is_finite(array[::2]) == bool(np.isfinite(array[::2].astype(float)).all())


@pytest.mark.parametrize("kind", FLOATS)
def test_the_largest_numbers_are_finite_and_what_follows_is_not(kind):
    largest = np.asarray(ml_dtypes.finfo(kind).max, kind)
    assert weights.is_finite(np.array([largest, -largest, 0, -0.0], kind))
    assert weights.is_finite(largest) and weights.is_finite(np.zeros((0, 3), kind))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        assert not weights.is_finite(np.array([[0, value, -largest]], kind))
        assert not weights.is_finite(np.array(value, kind))
    assert weights.is_finite(np.array([-1, 2**31 - 1], np.int32))


def with_value(arrays, name, value):
    """The arrays, one of which has the value in it."""
    spoilt = arrays[name].copy()
    spoilt.flat[-1] = value
    return {**arrays, name: spoilt}


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float16, np.nan), (ml_dtypes.bfloat16, -np.inf), (np.float32, np.inf)],
)
def test_a_model_that_is_not_finite_does_not_load(model_file, tmp_path, dtype, value):
    tensors, metadata = weights.read_safetensors(model_file)
    name = "unet.conv_out.kernel"
    arrays = {n: tensor.load().astype(dtype) for n, tensor in tensors.items()}
    spoilt = with_value(arrays, name, value)
    path, folder = tmp_path / "a.safetensors", tmp_path / "orbax"
    weights.write_safetensors(path, spoilt, metadata)
    weights.write_orbax(folder, {n: weights.lazy(a) for n, a in spoilt.items()}, metadata)
    for source in (path, folder):
        with pytest.raises(UserError) as error:
            systems.load_model(source)
        assert_one_line(f"error: {error.value}\n", f"{source}: {name} {SAYS}", "; copy or download")


def test_a_pre_restorer_that_is_not_finite_does_not_load(arrays, tmp_path):
    key = "preprocess_model.conv_body.weight"
    spoilt = with_value(arrays, key, np.nan)
    write_file(tmp_path / "whole.safetensors", spoilt)
    alone = {
        name.removeprefix("preprocess_model."): torch.from_numpy(a)
        for name, a in spoilt.items()
        if name.startswith("preprocess_model.")
    }
    torch.save({"params_ema": alone}, tmp_path / "net.pth")
    for path, name in (("whole.safetensors", key), ("net.pth", "conv_body.weight")):
        with pytest.raises(UserError) as error:
            preprocessor(tmp_path / path)
        assert_one_line(f"error: {error.value}\n", f"{tmp_path / path}: {name} {SAYS}")


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_converter_refuses_and_leaves_nothing(arrays, context_file, tmp_path, capfd, kind):
    spoilt = with_value({name: a.astype(kind) for name, a in arrays.items()}, KEY, np.nan)
    path = write_file(tmp_path / "nan.safetensors", spoilt)
    out = tmp_path / "out"
    out.mkdir()
    options = ("--head-dim", "16", "--context", context_file)
    for to, target in {"dossr": "a.safetensors", "orbax": "a", "release": "b.safetensors"}.items():
        assert run(path, out / target, "--to", to, *options) == 2
        errors = capfd.readouterr().err.splitlines()
        assert [line for line in errors if "Traceback" in line] == []
        assert errors[-1].startswith(f"error: {path}: {KEY} {SAYS}")
        assert not list(out.iterdir())


def test_a_pickle_that_is_not_finite_is_refused_by_its_own_name(
    arrays, context_file, golden_dir, tmp_path
):
    spoilt = with_value(arrays, KEY, np.inf)
    tensors = {f"module.{name}": torch.from_numpy(a) for name, a in spoilt.items()}
    torch.save({"state_dict": tensors}, tmp_path / "inf.ckpt")
    context = np.load(context_file)["context"]
    with pytest.raises(UserError, match=rf"inf\.ckpt: module\.{KEY} {SAYS}"):
        load_release(
            tmp_path / "inf.ckpt",
            golden_dir / "config.yaml",
            context=context,
            negative_context=context,
        )


def test_ema_weights_that_stay_behind_may_be_anything(arrays, context_file, tmp_path):
    name = "model_ema.diffusion_modelout2bias"
    spoilt = {**arrays, name: np.full_like(arrays[KEY], np.nan)}
    path = write_file(tmp_path / "ema.safetensors", spoilt)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(path, tmp_path / "a.safetensors", *options) == 0
    assert run(path, tmp_path / "b.safetensors", *options, "--ema") == 2


def test_what_a_dtype_cannot_hold_is_not_written(arrays, context_file, tmp_path, capsys):
    kept = {**arrays, KEY: np.full(arrays[KEY].shape, 1e6, np.float32)}
    path = write_file(tmp_path / "large.safetensors", kept)
    target = tmp_path / "a.safetensors"
    options = ("--head-dim", "16", "--context", context_file)
    assert run(path, target, *options, "--dtype", "float16") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: unet.conv_out.bias has values out of the range")
    assert not target.exists()
    assert run(path, target, *options, "--dtype", "bfloat16") == 0
    assert read_file(target)["unet.conv_out.bias"].astype(np.float32).min() > 9e5


def test_embeddings_that_are_not_finite_are_refused(arrays, context_file, tmp_path, capsys):
    path = write_file(tmp_path / "golden.safetensors", arrays)
    good = np.load(context_file)["context"]
    np.savez(tmp_path / "nan.npz", context=good, context_neg=np.full_like(good, np.nan))
    options = ("--head-dim", "16", "--context", tmp_path / "nan.npz")
    assert run(path, tmp_path / "a.safetensors", *options) == 2
    assert_one_line(capsys.readouterr().err, f"nan.npz: context_neg {SAYS}")
