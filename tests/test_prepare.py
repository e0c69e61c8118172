"""Preparing a data set: tiles, what is left out, and that interruptions leave no trace."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import picture, quarter, save

from dossr_jax import image_io
from dossr_jax.data import prepare, tiles
from dossr_jax.data.sources import Record, open_source
from dossr_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def build(photos, out, **options):
    return prepare.prepare(photos, out, prepare.Options(**options), workers=1)


def records(folder, split="train"):
    """Records of a data set by name."""
    source = open_source(folder, split=split, hold_out=20)
    return {source[i].name: source[i] for i in range(len(source))}


@pytest.mark.parametrize("shape", [(64, 64), (70, 150), (20, 100), (30, 40)])
def test_tiles_cover_an_image(shape):
    image = picture(*shape)
    seen = np.zeros(shape, int)
    for tile in tiles.cut(Record("a", image, None), 32):
        y, x = map(int, tile.name.removeprefix("a@").split(","))
        assert tile.hr.shape == (min(32, shape[0]), min(32, shape[1]), 3)
        np.testing.assert_array_equal(tile.hr, image[y : y + 32, x : x + 32])
        seen[y : y + 32, x : x + 32] += 1
    assert seen.min() == 1 and seen.max() <= 4
    assert (seen == 1).all() == all(n % 32 == 0 or n < 32 for n in shape)


def test_tiles_of_pairs_stay_aligned():
    image = picture(72, 100)
    cut = list(tiles.cut(Record("a", image, quarter(image)), 32))
    assert len(cut) == 12
    for tile in cut:
        np.testing.assert_array_equal(quarter(tile.hr), tile.lr)


def test_flat_small_and_damaged_photos_are_left_out_and_told(tmp_path):
    photos = tmp_path / "photos"
    good, half_flat, small, broken, empty = (f"{i}.png" for i in range(5))
    save(photos / good, picture(64, 64))
    image = picture(64, 64, 1)
    image[:32] = 200
    save(photos / half_flat, image)
    save(photos / small, picture(7, 64))
    (photos / broken).write_bytes((photos / good).read_bytes()[:500])
    (photos / empty).touch()
    report = build(photos, tmp_path / "set", tile=32, hold_out=0)
    assert report == json.loads((tmp_path / "set" / "prepare.json").read_text())
    assert report["records"] == {"train": 6} and report["flat_tiles"] == 2
    assert report["too_small"] == [small]
    assert set(report["undecodable"]) == {broken, empty}
    assert "the file is empty" in report["undecodable"][empty]
    found = set(records(tmp_path / "set"))
    assert found == {f"{good}@{p}" for p in ("0,0", "0,32", "32,0", "32,32")} | {
        f"{half_flat}@32,0",
        f"{half_flat}@32,32",
    }


def test_large_and_chosen_photos_are_halved(tmp_path):
    photos = tmp_path / "photos"
    large, chosen, other = "a.png", "x_a.png", "b.png"
    for name, shape in ((large, (100, 100)), (chosen, (64, 64)), (other, (64, 64))):
        save(photos / name, picture(*shape))
    build(photos, tmp_path / "set", tile=64, halve_above=0.01, halve=("x_*",), hold_out=0)
    shapes = {name.split("@")[0]: r.hr.shape[:2] for name, r in records(tmp_path / "set").items()}
    assert shapes == {large: (50, 50), chosen: (32, 32), other: (64, 64)}
    halved = records(tmp_path / "set")[f"{large}@0,0"].hr
    np.testing.assert_array_equal(halved, image_io.resample(picture(100, 100), 50, 50))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """160 photos in folders, 8 of them for validation: several shards."""
    root = tmp_path_factory.mktemp("many")
    for i in range(160):
        save(root / f"group{i % 3}" / f"p{i}.png", picture(48, 40, i))
    return root


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The data set of an uninterrupted build."""
    out = tmp_path_factory.mktemp("whole") / "set"
    build(photos, out, tile=32)
    return out


def test_splits_are_those_of_the_folder(photos, whole):
    for split in ("train", "validation"):
        found = {name.split("@")[0] for name in records(whole, split)}
        folder = open_source(photos, split=split, hold_out=20)
        assert found == set(folder.names)


def test_tfds_reads_it_without_tensorflow(whole):
    script = (
        "import sys, tensorflow_datasets as tfds;"
        f"builder = tfds.builder_from_directory({str(whole)!r});"
        "sources = {s: builder.as_data_source(s) for s in ('train', 'validation')};"
        "total = {s: sum(int(r['hr'].astype(int).sum()) for r in v) for s, v in sources.items()};"
        "names = sorted(r['name'].decode() for r in sources['train']);"
        "import json; print(json.dumps([total, names, 'tensorflow' in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    total, names, tensorflow = json.loads(result.stdout)
    assert not tensorflow
    assert names == sorted(records(whole))
    for split, value in total.items():
        assert value == sum(int(r.hr.astype(int).sum()) for r in records(whole, split).values())


def test_tfds_reads_pairs(tmp_path):
    import tensorflow_datasets as tfds  # here, as it takes a second

    for i in range(3):
        save(tmp_path / "photos" / "HR" / f"{i}.png", picture(64, 32, i))
        save(tmp_path / "photos" / "LR" / f"{i}.png", quarter(picture(64, 32, i)))
    options = {"tile": 32, "halve_above": 1e-6, "hold_out": 0}
    report = build(tmp_path / "photos", tmp_path / "set", **options)
    assert report["paired"] and report["records"] == {"train": 6}
    ours = records(tmp_path / "set")
    for record in tfds.builder_from_directory(str(tmp_path / "set")).as_data_source("train"):
        np.testing.assert_array_equal(record["hr"], ours[record["name"].decode()].hr)
        np.testing.assert_array_equal(record["lr"], quarter(record["hr"]))


def assert_same_files(one, two):
    names = [sorted(p.name for p in folder.iterdir()) for folder in (one, two)]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(one, two, names[0], shallow=False)[0] == names[0]


def run(photos, out, *options):
    """The command line, as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "dossr_jax.data.prepare", photos, out, "--tile", "32", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_build_is_a_function_of_photos_and_options(photos, whole, tmp_path):
    prepare.prepare(photos, tmp_path / "set", prepare.Options(tile=32), workers=2)
    assert_same_files(tmp_path / "set", whole)


def test_killed_and_run_again_ends_with_the_same_files(photos, whole, tmp_path):
    out = tmp_path / "set"
    kills = 0
    for shards in (1, 2, 4):  # complete ones at which it is killed
        process = run(photos, out, "--workers", "1")
        while process.poll() is None and len(list(out.glob("photos-*"))) < shards:
            time.sleep(0.002)
        if process.poll() is None:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(UserError, match="not finished"):
            open_source(out, split="train", hold_out=20)
    assert kills == 3
    # Complete is what says so itself; its worker may end a moment after it.
    done = [p.stem for p in (out / "unfinished").glob("photos-*.json")]
    kept = {name: (out / name).stat().st_mtime_ns for name in done}
    assert len(kept) >= 3
    build(photos, out, tile=32)
    assert_same_files(out, whole)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_a_finished_data_set_is_left_alone(photos, whole):
    before = {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    report = build(photos, whole, tile=32)
    assert report["records"]["train"] == len(records(whole))
    assert {p.name: p.stat().st_mtime_ns for p in whole.iterdir()} == before


def test_folders_of_something_else_are_not_touched(photos, whole, tmp_path):
    with pytest.raises(UserError, match=r"begun otherwise \(seed was 0, is 1\)"):
        build(photos, whole, tile=32, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty, and not begun by this command"):
        build(photos, tmp_path, tile=32)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_usable_is_an_error(tmp_path):
    save(tmp_path / "photos" / "a.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(UserError, match="no tile for training.*4 flat ones left out"):
        build(tmp_path / "photos", tmp_path / "set", tile=32, hold_out=0)
    assert not (tmp_path / "set" / "dataset_info.json").exists()


def test_one_photo_is_refused_before_anything_is_written(tmp_path):
    save(tmp_path / "photos" / "a.png", picture(64, 64))
    with pytest.raises(UserError, match="holds one image, but training and validation need one"):
        build(tmp_path / "photos", tmp_path / "set", tile=32)
    assert not (tmp_path / "set").exists()
    assert build(tmp_path / "photos", tmp_path / "set", tile=32, hold_out=0)["records"]


def test_a_place_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(UserError, match=f"{out}: cannot be written into; choose a folder"):
            build(photos, out, tile=32)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_told_and_survived(photos, whole, tmp_path):
    """A limit on the size of files stands for the disk; lifted, the same command goes on."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, -1));"
        "from dossr_jax.data import prepare; sys.exit(prepare.main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited, photos, tmp_path / "set", "--tile", "32"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2
    assert "File too large" in result.stderr and "free disk space" in result.stderr
    build(photos, tmp_path / "set", tile=32)
    assert_same_files(tmp_path / "set", whole)


def test_the_command_line_says_what_it_did(photos, tmp_path):
    process = run(photos, tmp_path / "set")
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "validation tiles of 160 photos; 0 flat ones left out" in out
    process = run(tmp_path / "none", tmp_path / "other")
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("error: ") and "no such file or folder" in error
    process = run(photos, tmp_path / "other", "--tile", "33")
    assert "error: --tile 33: not a multiple of 4" in process.communicate()[1]


@pytest.mark.parametrize("hold_out", [-1, 1])
def test_a_share_that_leaves_nothing_for_training_is_refused(hold_out):
    with pytest.raises(UserError, match=f"--hold-out {hold_out}: not 0"):
        prepare.Options(hold_out=hold_out)
