"""What a file is, by its content: weights load whatever they are called, all else is one line."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_one_line, read_file, run, same, write_file

from dossr_jax import systems, weights
from dossr_jax.config import RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Upscaler
from dossr_jax.pytorch.tables import rrdb_table
from dossr_jax.systems.rrdb import load_rrdb, preprocessor

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
RRDB = RRDBConfig(num_features=8, num_blocks=1, growth=4)


@pytest.fixture(scope="module")
def tensors():
    """An RRDBNet under its PyTorch names."""
    rng = np.random.default_rng(0)
    rows = rrdb_table(RRDB)
    return {row.torch: (0.1 * rng.normal(size=row.shape)).astype(np.float32) for row in rows}


def torch_file(path: Path, tensors, **options) -> Path:
    torch.save({name: torch.from_numpy(a) for name, a in tensors.items()}, path, **options)
    return path


def refuse_everywhere(path: Path, *words: str) -> None:
    """A model, a pre-restorer and an input of the converter: all are refused with those words."""
    for load in (systems.load_model, preprocessor):
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_line(f"error: {error.value}\n", *words)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"anything")
    return file.getvalue()


def tarred(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


STAND_INS = {
    "pointer": (POINTER, "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    "empty": (b"", "an empty file; copy or download it again"),
    "page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page, not the file itself"),
    "page in lower case": (b"\xef\xbb\xbf \n<html>", "a web page, not the file itself"),
    "zip": (zipped("dossr.ckpt"), "an archive (zip), not weights; unpack it"),
    "tar": (tarred("dossr.ckpt"), "an archive (tar), not weights; unpack it"),
    "tar.gz": (gzip.compress(tarred("dossr.ckpt")), "an archive (gzip), not weights; unpack it"),
    "TorchScript": (zipped("net/constants.pkl"), "a TorchScript program, not weights"),
}


@pytest.mark.parametrize("kind", STAND_INS)
def test_what_stands_for_weights_is_one_line_everywhere(
    kind, model_file, context_file, tmp_path, capsys
):
    content, says = STAND_INS[kind]
    for name in ("a.safetensors", "a.ckpt", "a.pth", "a.zip", "a.bin", "a"):
        path = tmp_path / name
        path.write_bytes(content)
        refuse_everywhere(path, f"{path}: {says}")
        target = tmp_path / "out.safetensors"
        assert run(path, target, "--context", context_file) == 2
        assert_one_line(capsys.readouterr().err, f"{path}: {says}")
        assert run(model_file, target, "--rrdb", path) == 2
        assert_one_line(capsys.readouterr().err, f"{path}: {says}")
        assert not target.exists()


def test_restoring_refuses_a_pointer_as_model_and_as_pre_restorer(model_file, tmp_path):
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_bytes(POINTER)
    for model, preprocessor_file in ((pointer, None), (model_file, pointer)):
        with pytest.raises(UserError) as error:
            Upscaler.from_pretrained(model, preprocessor=preprocessor_file)
        assert_one_line(f"error: {error.value}\n", f"{pointer}: a Git LFS pointer")


def test_content_counts_more_than_the_name(tensors, tmp_path):
    files = [
        write_file(tmp_path / "a.ckpt", tensors),
        write_file(tmp_path / "pytorch_model.bin", tensors),
        write_file(tmp_path / "no_suffix", tensors),
        torch_file(tmp_path / "b.safetensors", tensors),
        torch_file(tmp_path / "b.bin", tensors),
        torch_file(tmp_path / "b.zip", tensors),
        torch_file(tmp_path / "old.bin", tensors, _use_new_zipfile_serialization=False),
    ]
    expected = load_rrdb(write_file(tmp_path / "plain.safetensors", tensors))[1]
    for path in files:
        config, arrays = load_rrdb(path)
        assert config == RRDB, path
        assert same(arrays, expected), path


def test_pytorchs_files_are_no_models_before_they_are_converted(tensors, tmp_path):
    path = torch_file(tmp_path / "a.ckpt", tensors)
    with pytest.raises(UserError, match="a PyTorch checkpoint, not a dossr_jax model; convert it"):
        systems.load_model(path)
    with pytest.raises(UserError, match="a folder of checkpoint files, not a dossr_jax model"):
        systems.load_model(tmp_path)


# --- Shards


def write_shards(folder: Path, arrays, metadata=None, count: int = 3) -> Path:
    """Spread tensors over files as Hugging Face's tools do; the path of the index."""
    folder.mkdir(exist_ok=True)
    place = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = dict(list(arrays.items())[i::count])
        weights.write_safetensors(folder / file, part, metadata)
        place |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))
    return index


def test_shards_are_one_checkpoint(arrays, golden_dir, context_file, converted, tmp_path):
    index = write_shards(tmp_path / "shards", arrays)
    options = ("--config", golden_dir / "config.yaml", "--context", context_file)
    for path in (index, index.parent):
        assert run(path, tmp_path / "a.safetensors", *options, "--overwrite") == 0
        assert same(read_file(tmp_path / "a.safetensors"), read_file(converted))


def test_shards_of_a_pre_restorer_and_of_our_model_load(tensors, model_file, tmp_path):
    index = write_shards(tmp_path / "rrdb", tensors)
    expected = load_rrdb(write_file(tmp_path / "plain.safetensors", tensors))[1]
    for path in (index, index.parent):
        assert same(load_rrdb(path)[1], expected)
    whole, metadata = weights.read_safetensors(model_file)
    index = write_shards(tmp_path / "ours", whole, metadata)
    expected = dict(weights.names_and_params(systems.load_model(model_file)))
    for path in (index, index.parent):
        for name, param in weights.names_and_params(systems.load_model(path)):
            np.testing.assert_array_equal(param[...], expected[name][...])


def test_damaged_shards_are_one_line_that_names_the_file(tensors, tmp_path):
    folder = tmp_path / "shards"
    second = folder / "model-00002-of-00003.safetensors"

    def change_index(text: str) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    other = {"another": np.ones(3, np.float32)}
    for damage, words in (
        (second.unlink, (f"{second}: no such file, though model.safetensors.index.json names it",)),
        (lambda: second.write_bytes(POINTER), (f"{second}: a Git LFS pointer",)),
        (lambda: second.write_bytes(second.read_bytes()[:-1]), (f"{second}: not a whole",)),
        (lambda: write_file(second, other), (f"{second}: has no ", "though")),
        (lambda: change_index("{}"), ("index.json: not an index of shards", "weight_map")),
        (lambda: change_index("[]"), ("index.json: not an index of shards",)),
        (lambda: change_index('{"weight_map": {"a": 3}}'), ("index.json: not an index of shards",)),
        (lambda: change_index("no JSON"), ("index.json: not an index of shards",)),
        (lambda: change_index(POINTER.decode()), ("index.json: a Git LFS pointer",)),
    ):
        index = write_shards(folder, tensors)
        damage()
        for path in (index, folder):
            refuse_everywhere(path, *words)
    write_shards(folder, tensors).with_name("b.safetensors.index.json").write_text("{}")
    refuse_everywhere(folder, "give one index")
