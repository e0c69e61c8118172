"""Sources: what counts as an image, a pair, a split, and what is said when something lacks."""

import json
import logging
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.pictures import names_for, picture, quarter, save

from dossr_jax.config import DataConfig
from dossr_jax.data import prepare
from dossr_jax.data.pipeline import Batches
from dossr_jax.data.sources import Prepared, held_out, list_images, open_source
from dossr_jax.data.tiles import cut
from dossr_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of 40 photos for training, two shards, and 2 for validation."""
    root = tmp_path_factory.mktemp("prepared")
    for i, name in enumerate(names_for("train", 40) + names_for("validation", 2)):
        save(root / "photos" / name, picture(32, 48, i))
    prepare.prepare(root / "photos", root / "set", prepare.Options(tile=32), workers=1)
    return root / "set"


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "set")


@pytest.mark.parametrize("hold_out", [2, 20])
@pytest.mark.parametrize("count", [2, 3, 10, 31, 2000])
def test_each_split_has_its_share_and_at_least_one_photo(count, hold_out):
    chosen = held_out([f"{i}.jpg" for i in range(count)], hold_out)
    assert 1 <= len(chosen) < count
    assert abs(len(chosen) - count / hold_out) < 1


def test_the_split_depends_on_file_names_alone():
    names = [f"some/folder/{i}.jpg" for i in range(50)]
    chosen = held_out(names, 20)
    assert held_out(names[::-1], 20) == chosen
    moved = held_out([name.replace("some/folder", "elsewhere") for name in names], 20)
    assert {name.replace("elsewhere", "some/folder") for name in moved} == chosen
    assert held_out(names, 0) == set() and held_out(names, 1) == set(names)


def test_photos_of_one_name_are_split_too():
    names = [f"scene{i}/photo.png" for i in range(10)]
    assert len(held_out(names, 20)) == 1 and held_out(names[::-1], 20) == held_out(names, 20)


def test_a_photo_that_is_added_moves_at_most_one_other():
    names = [f"{i}.jpg" for i in range(200)]
    for count in range(2, 200):
        before, after = held_out(names[:count], 20), held_out(names[: count + 1], 20)
        assert len((before ^ after) - {names[count]}) <= 1


def test_the_split_is_the_same_forever():
    """A change here would train on photos that earlier data sets hold out."""
    names = [f"{i}.jpg" for i in range(100)]
    assert held_out(names, 20) == {"26.jpg", "4.jpg", "48.jpg", "49.jpg", "92.jpg"}


def test_folder_is_searched_for_images(tmp_path):
    train, validation = names_for("train", 3), names_for("validation", 1)
    for i, name in enumerate([*train, *validation]):
        save(tmp_path / "deep" / "er" / name, picture(20, 30, i))
    save(tmp_path / ".hidden" / "a.png", picture(20, 30))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path, split="train", hold_out=20)
    assert [source[i].name for i in range(len(source))] == sorted(f"deep/er/{n}" for n in train)
    assert source[0].hr.shape == (20, 30, 3) and source[0].hr.dtype == np.uint8
    assert source[0].lr is None
    assert len(open_source(tmp_path, split="validation", hold_out=20)) == 1


def test_fingerprint_is_of_the_data_not_of_its_place(tmp_path):
    for i, name in enumerate(names_for("train", 3)):
        save(tmp_path / "a" / name, picture(20, 30, i))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (open_source(tmp_path / n, split="train", hold_out=20).fingerprint for n in "ab")
    assert one == two
    save(tmp_path / "b" / names_for("train", 4)[-1], picture(20, 30))
    assert open_source(tmp_path / "b", split="train", hold_out=20).fingerprint != one


LAYOUTS = {
    "folders": ("HR/x{}.png", "LR/x{}.png"),
    "deep folders": ("canon/HR/x{}.png", "canon/lr_x4/x{}.png"),
    "folders, other suffix": ("HR/x{}.png", "LR4/x{}.bmp"),
    "names": ("a/x{}_HR.png", "a/x{}_LR4.png"),
    "folders and names": ("HR/x{}_HR.png", "LR/x{}_LR4.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pairs_are_found(tmp_path, layout):
    for i in range(3):
        for name, shrink in zip(layout, (np.asarray, quarter), strict=True):
            save(tmp_path / name.format(i), shrink(picture(40, 48, i)))
    source = list_images(tmp_path)
    assert len(source) == 3
    for i in range(3):
        np.testing.assert_array_equal(source[i].hr, picture(40, 48, i))
        np.testing.assert_array_equal(source[i].lr, quarter(picture(40, 48, i)))


def test_images_without_a_partner_are_left_out_and_named(tmp_path, caplog):
    for name in ("HR/a.png", "HR/b.png", "other.png"):
        save(tmp_path / name, picture(16, 16))
    save(tmp_path / "LR/a.png", picture(4, 4))
    with caplog.at_level(logging.WARNING):
        assert list_images(tmp_path).names == ["HR/a.png"]
    assert "HR/b.png, other.png" in caplog.text
    shutil.rmtree(tmp_path / "HR")
    with pytest.raises(UserError, match=r"LR/a.png, other.png.*name partners"):
        list_images(tmp_path)


def test_pairs_of_wrong_sizes_are_named(tmp_path):
    save(tmp_path / "HR/a.png", picture(40, 44))
    save(tmp_path / "LR/a.png", picture(10, 10))
    with pytest.raises(UserError, match="HR/a.png is 44x40, LR/a.png 10x10"):
        list_images(tmp_path)
    for name in "bc":  # most pairs have one size
        save(tmp_path / f"HR/{name}.png", picture(12, 16))
        save(tmp_path / f"LR/{name}.png", picture(12, 16))
    with pytest.raises(
        UserError, match="1 HR images are not of the size of their LR partners: HR/a"
    ):
        list_images(tmp_path)


def test_pairs_of_one_size_are_cut_alike(tmp_path):
    for name in ("HR/a.png", "LR/a.png"):
        save(tmp_path / name, picture(40, 44))
    record = list_images(tmp_path)[0]
    assert record.scale == 1
    config = DataConfig(crop=16, batch=2, workers=0)
    batch = next(Batches(list_images(tmp_path), config, seed=0))
    np.testing.assert_array_equal(batch["hr"], batch["lr"])
    for tile in cut(record, 16):
        np.testing.assert_array_equal(tile.hr, tile.lr)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(tmp_path / "none", split="train", hold_out=20)
    with pytest.raises(UserError, match="no images in this folder"):
        open_source(tmp_path, split="train", hold_out=20)
    save(tmp_path / "a.png", picture(20, 20))
    for split in ("train", "validation"):
        with pytest.raises(UserError, match="holds one image, but training and validation need"):
            open_source(tmp_path, split=split, hold_out=20)
    with pytest.raises(UserError, match="none of its 1 images is for train at hold_out 1"):
        open_source(tmp_path, split="train", hold_out=1)
    with pytest.raises(UserError, match="not a folder"):
        open_source(tmp_path / "a.png", split="train", hold_out=20)


def test_an_unfinished_data_set_is_not_opened(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(UserError, match=r"not finished; run python -m dossr_jax.data.prepare"):
        open_source(tmp_path, split="train", hold_out=20)


def test_prepared_holds_what_the_folder_holds(prepared):
    for split in ("train", "validation"):
        folder = open_source(prepared.parent / "photos", split=split, hold_out=20)
        photos = {folder[i].name: folder[i].hr for i in range(len(folder))}
        source = open_source(prepared, split=split, hold_out=20)
        assert len(source) == 2 * len(folder)
        for i in range(len(source)):
            name, _, place = source[i].name.partition("@")
            top, left = map(int, place.split(","))
            tile = photos[name][top : top + 32, left : left + 32]
            np.testing.assert_array_equal(source[i].hr, tile)


def test_sources_can_be_pickled(prepared):
    for path in (prepared, prepared.parent / "photos"):
        source = open_source(path, split="train", hold_out=20)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[3].hr, source[3].hr)


def shards_of(folder):
    return sorted(folder.glob("photos-train*"))


def test_missing_and_truncated_shards_are_named(damaged):
    last = shards_of(damaged)[-1]
    content = last.read_bytes()
    for data in (content[: len(content) // 2], content[:100], b"", None):
        last.unlink() if data is None else last.write_bytes(data)
        with pytest.raises(UserError, match=f"{last.name}: not a whole ArrayRecord file"):
            open_source(damaged, split="train", hold_out=20)


def test_a_shard_with_other_records_is_named(damaged):
    first, last = shards_of(damaged)
    shutil.copy(last, first)
    with pytest.raises(UserError, match=f"{first.name}: holds 16 records instead of 64"):
        open_source(damaged, split="train", hold_out=20)


def test_a_damaged_record_is_an_error_of_its_own(damaged):
    first = shards_of(damaged)[0]
    data = bytearray(first.read_bytes())
    data[70_000:70_010] = bytes(10)
    first.write_bytes(data)
    source = open_source(damaged, split="train", hold_out=20)
    outcomes = []
    for i in range(len(source)):
        try:
            outcomes.append(source[i].hr.shape)
        except UserError as error:
            assert f"record train[{i}] is damaged" in str(error)
            outcomes.append(None)
    assert outcomes.count(None) == 1 and outcomes.count((32, 32, 3)) == 79


def change_info(folder, file, change):
    info = json.loads((folder / file).read_text())
    change(info)
    (folder / file).write_text(json.dumps(info))


def test_a_data_set_of_another_kind_is_refused(damaged):
    change_info(damaged, "dataset_info.json", lambda info: info["splits"].pop())
    with pytest.raises(UserError, match="has no split 'validation', but train"):
        Prepared(damaged, "validation")
    change_info(damaged, "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="its files are tfrecord"):
        Prepared(damaged, "train")
    (damaged / "features.json").write_text("{")
    with pytest.raises(UserError, match="features.json: cannot be read"):
        Prepared(damaged, "train")


def test_empty_shards_are_passed_over_and_an_empty_split_is_an_error(damaged):
    def empty(*which):
        def change(info):
            for i in which:
                info["splits"][0]["shardLengths"][i] = "0"

        return change

    change_info(damaged, "dataset_info.json", empty(0))
    assert len(open_source(damaged, split="train", hold_out=20)) == 16
    change_info(damaged, "dataset_info.json", empty(0, 1))
    with pytest.raises(UserError, match="split 'train' is empty"):
        open_source(damaged, split="train", hold_out=20)


def test_other_tfds_data_sets_are_read(tmp_path):
    """One that TFDS itself writes, with the customary name of the feature."""
    import tensorflow_datasets as tfds  # here, as it takes a second

    identity = tfds.core.dataset_info.DatasetIdentity(
        name="other", version=tfds.core.Version("2.0.0"), data_dir=str(tmp_path), module_name="m"
    )
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Scalar(np.int64),
        }
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 3, file_format="array_record")
    writer.initialize_splits(["train"])
    pictures = [picture(20, 24, i) for i in range(5)]
    for i, image in enumerate(pictures):
        save(tmp_path / f"{i}.png", image)
        example = {"image": str(tmp_path / f"{i}.png"), "label": i}
        writer.add_examples({"train": [example]})
    writer.close_all()
    source = open_source(tmp_path, split="train", hold_out=20)
    assert [source[i].name for i in range(len(source))] == [f"train[{i}]" for i in range(5)]
    for i, image in enumerate(pictures):
        np.testing.assert_array_equal(source[i].hr, image)


def test_reading_imports_neither_tensorflow_nor_jax(prepared):
    script = (
        "import sys, pathlib; from dossr_jax.data.sources import open_source;"
        f"open_source(pathlib.Path({str(prepared)!r}), split='train', hold_out=20)[0];"
        "print([m for m in ('jax', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
