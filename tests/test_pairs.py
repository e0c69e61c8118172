"""Pairs made beforehand: what a record is, whatever else was made with it, and who trains on it."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.models import TINY
from helpers.pictures import names_for, picture, quarter, save
from helpers.runs import write_model
from helpers.small import make_batch, make_config
from test_prepare import assert_same_files, records
from test_training import begin

from dossr_jax import systems
from dossr_jax.config import DataConfig
from dossr_jax.data import degradation, pairs, prepare
from dossr_jax.data.pipeline import Batches
from dossr_jax.data.sources import Record, open_source
from dossr_jax.errors import UserError
from dossr_jax.systems.rrdb import preprocessor
from dossr_jax.training import params, step
from dossr_jax.training.stages.base import pre_restore_crops

PRESETS = ("light",)  # little to compile, but random
SIDE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five photos of 64 px, one of them for validation, and one smaller than a tile."""
    root = tmp_path_factory.mktemp("photos")
    names = names_for("train", 5) + names_for("validation", 1)
    for seed, name in enumerate(names):
        save(root / name, picture(64 if seed else 20, 64, seed))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY)


def command(*arguments):
    return prepare.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def whole(photos, model, tmp_path_factory):
    """Two degradations of every tile, from the photos in one command."""
    out = tmp_path_factory.mktemp("whole") / "set"
    options = ["--tile", SIDE, "--degrade", *PRESETS, "--pre-restore", model, "--copies", 2]
    assert command(photos, out, *options, "--workers", 1) == 0
    return out


def test_a_pair_is_a_degradation_and_what_the_model_makes_of_it(whole, model):
    """Its random draws come from its name; another copy of a tile is another degradation."""
    found = records(whole)
    assert len(found) == 4 * 4 * 2 and len(records(whole, "validation")) == 4 * 2
    names = sorted(found)[:8]
    assert len({found[name].lr.tobytes() for name in names}) == 8
    presets = degradation.choose_presets(PRESETS)
    hr = np.stack([found[name].hr for name in names])
    keys = jax.vmap(lambda data: jax.random.fold_in(jax.random.key(0), data))(
        np.stack([pairs._number_of(name) for name in names])
    )
    want = jax.jit(lambda keys, hr: degradation.degrade(keys, hr / 255, presets))(keys, hr)
    network = preprocessor(model)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(found[name].lr, np.rint(255 * want[i]))
    lr = np.stack([found[name].lr for name in names])
    pre = np.asarray(nnx.jit(lambda m, lr: m.pre_restore(lr / 255))(network, lr), np.float64)
    # Half a level of rounding; and the compiler may sum otherwise here.
    stored = np.stack([found[name].pre for name in names])
    assert np.abs(stored - 255 * pre).max() < 0.5 + 1e-2


def test_pairs_are_split_as_their_photos_are(photos, whole):
    for split in ("train", "validation"):
        folder = open_source(photos, split=split, hold_out=20)
        large = {folder[i].name for i in range(len(folder)) if len(folder[i].hr) >= SIDE}
        assert {name.split("@")[0] for name in records(whole, split)} == large


def test_what_else_is_made_changes_no_pair(photos, whole, model, tmp_path):
    tiles = tmp_path / "tiles"
    assert command(photos, tiles, "--tile", SIDE) == 0
    options = ["--degrade", *PRESETS, "--pre-restore", model, "--limit", 5]
    assert command(tiles, tmp_path / "some", *options) == 0
    some, every = records(tmp_path / "some"), records(whole)
    assert len(some) == 4  # the fifth is the tile of the small photo
    for name, record in some.items():
        np.testing.assert_array_equal(record.hr, every[name].hr)
        np.testing.assert_array_equal(record.lr, every[name].lr)
        np.testing.assert_array_equal(record.pre, every[name].pre)


def test_stopped_and_run_again_ends_with_the_same_files(
    photos, whole, model, tmp_path, monkeypatch
):
    """Stopped between two shards; a finished data set is left alone."""
    out = tmp_path / "set"
    options = [photos, out, "--tile", SIDE, "--degrade", *PRESETS, "--pre-restore", model]
    options += ["--copies", 2]
    with monkeypatch.context() as patch:
        make = pairs._Maker.records

        def stop(maker, content, tally, *, bar):
            if content.source._split == "validation":
                raise KeyboardInterrupt
            yield from make(maker, content, tally, bar=bar)

        patch.setattr(pairs._Maker, "records", stop)
        assert command(*options) not in (0, 2)
    with pytest.raises(UserError, match="not finished"):
        open_source(out, split="train", hold_out=20)
    assert command(*options) == 0
    assert_same_files(out, whole)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert command(*options) == 0
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_other_weights_in_that_file_are_another_data_set(photos, whole, model, capsys):
    """What else a model file tells is not part of the data."""
    options = ["--tile", SIDE, "--degrade", *PRESETS, "--pre-restore", model, "--copies", 2]
    before = model.read_bytes()
    try:
        systems.save_model(model, systems.load_model(model), notes={"training": "[]"})
        assert model.read_bytes() != before
        assert command(photos, whole, *options) == 0
        write_model(model, TINY, seed=1)
        assert command(photos, whole, *options) == 2
        assert "pre_restorer_sha256 was" in capsys.readouterr().err
    finally:
        model.write_bytes(before)


def test_what_is_left_out_is_told(photos, model, tmp_path, capsys):
    """Tiles of a photo smaller than a tile: every other shape would be compiled anew."""
    tiles = tmp_path / "tiles"
    command(photos, tiles, "--tile", SIDE)
    assert command(tiles, tmp_path / "set", "--degrade", *PRESETS) == 0
    small = names_for("train", 1)[0]
    report = json.loads((tmp_path / "set" / "prepare.json").read_text())
    assert {name.split("@")[0] for name in report["too_small"]} == {small}
    assert "16 train, 4 validation pairs of" in capsys.readouterr().out
    assert all(record.pre is None for record in records(tmp_path / "set").values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--copies", "2"], "only with --degrade"),
        (["--degrade", "fog"], "no degradation preset 'fog'"),
        (["--degrade", "denoise"], "reduces by 1"),
        (["--pre-restore", "realesrgan"], "give --degrade"),
        (["--degrade", "bicubic", "--pre-restore", "none.pth"], "none.pth"),
        (["--degrade", "bicubic", "--copies", "0"], "1 or more"),
        (["--degrade", "bicubic", "--tile", "32"], "leave --tile out"),
        (["--tile", "32"], "already cut into tiles; add --degrade"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(options, message, photos, tmp_path, capsys):
    tiles = tmp_path / "tiles"
    command(photos, tiles, "--tile", SIDE)
    capsys.readouterr()
    try:
        status = command(tiles, tmp_path / "set", *options)
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "set" / "dataset_info.json").exists()


def test_a_wrong_model_is_refused_before_tiles_are_cut(photos, tmp_path, capsys):
    options = ["--tile", SIDE, "--degrade", *PRESETS, "--pre-restore", "none.pth"]
    assert command(photos, tmp_path / "set", *options) == 2
    assert "none.pth" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_one_photo_is_refused_before_anything_is_written(tmp_path, capsys):
    save(tmp_path / "photos" / "a.png", picture(64, 64))
    options = ["--tile", SIDE, "--degrade", *PRESETS]
    assert command(tmp_path / "photos", tmp_path / "set", *options) == 2
    assert "training and validation need one each" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_crops_of_the_three_images_stay_aligned(tmp_path):
    """Cut, flipped and turned together."""

    class Memory:
        path, fingerprint = tmp_path, "f"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            hr = picture(40, 48, index)
            return Record(f"image {index}", hr, quarter(hr), 255 - hr)

    config = DataConfig(crop=16, batch=8, workers=0)
    with Batches(Memory(), config, seed=0) as batches:
        for batch in (next(batches), next(batches)):
            np.testing.assert_array_equal(batch["pre"], 255 - batch["hr"])
            for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
                np.testing.assert_array_equal(quarter(hr), lr)


def test_stages_take_stored_images_but_the_pre_restorer_learns_from_lr():
    rng = np.random.default_rng(0)
    batch = make_batch()
    stored = batch | {"pre": rng.integers(0, 256, batch["hr"].shape, dtype=np.uint8)}
    key = jax.random.key_data(jax.random.key(3))
    for stage, uses in (("rrdb", False), ("dossr", True)):
        config = make_config(stage)
        mesh, run = begin(stage)
        model = params.build(run.graphdef, {**run.state.frozen, **run.state.learn})
        inputs_of = step.make_inputs(config, mesh)
        losses = [config.stage.loss(model, inputs_of(key, b), None)[0] for b in (batch, stored)]
        assert (np.asarray(losses[0]) != np.asarray(losses[1])).all() == uses
        if uses:
            got = pre_restore_crops(model, inputs_of(key, stored))
            np.testing.assert_allclose(got, stored["pre"] / 255, atol=1e-7)
