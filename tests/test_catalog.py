"""Data sets of TensorFlow Datasets, generated here: read as what they were made of, offline."""

import functools
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.pictures import names_for, picture, quarter, save
from helpers.runs import write_model
from helpers.small import SMALL, make_config

from dossr_jax.config import DataConfig
from dossr_jax.data import prepare, tfds_builder
from dossr_jax.data.sources import open_source
from dossr_jax.errors import UserError
from dossr_jax.training.journal import METRICS_FILE
from dossr_jax.training.loop import train


def write_catalog(root, name, version, splits):
    """A data set as TFDS itself writes it: `image`, which is a file, and a label."""
    (root / name / version).mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(root / name / version),
        module_name="m",
    )
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64}
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 3, file_format="array_record")
    writer.initialize_splits([*splits])
    for split, seeds in splits.items():
        for seed in seeds:
            save(root / f"{seed}.png", picture(20, 24, seed))
            example = {"image": str(root / f"{seed}.png"), "label": seed}
            writer.add_examples({split: [example]})
    writer.close_all()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A TFDS_DATA_DIR with prepared pairs, and two data sets of another maker."""
    root = tmp_path_factory.mktemp("catalog")
    for i, name in enumerate([*names_for("train", 9), *names_for("validation", 1)]):
        save(root / "pairs" / "HR" / name, picture(40, 32, seed=i))
        save(root / "pairs" / "LR" / name, quarter(picture(40, 32, seed=i)))
    out = root / "dossr_pairs" / "1.0.0"
    prepare.prepare(root / "pairs", out, prepare.Options(tile=32), workers=1)
    write_catalog(root, "other", "2.0.0", {"train": range(5), "validation": range(5, 7)})
    write_catalog(root, "plain", "1.0.0", {"train": range(20)})
    return root


@pytest.fixture(autouse=True)
def data_dir(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


def images(name, split="train", hold_out=20):
    source = open_source(Path(f"tfds:{name}"), split=split, hold_out=hold_out)
    return [source[i] for i in range(len(source))]


def test_images_are_those_that_were_stored():
    for split, seeds in (("train", range(5)), ("validation", range(5, 7))):
        for record, seed in zip(images("other", split), seeds, strict=True):
            np.testing.assert_array_equal(record.hr, picture(20, 24, seed))
        assert record.name == f"{split}[{len(seeds) - 1}]" and record.lr is None
    assert len(images("other:2.0.0")) == 5


def test_a_split_of_ones_choice_is_held_out_by_a_share():
    for name in ("other/train", "other/train[:80%]", "plain"):
        for_train, for_validation = images(name), images(name, "validation")
        assert len(for_validation) == 1
        whole = {r.name: r.hr.tobytes() for r in images(name, "validation", hold_out=1)}
        assert {r.name: r.hr.tobytes() for r in for_train + for_validation} == whole
    assert len(images("other/train[:80%]")) == 3


def test_tfds_reads_prepared_data_by_name_where_they_lie(root):
    prepared = root / "dossr_pairs" / "1.0.0"
    ours = {record.name: record for record in images("dossr_pairs")}
    for folder in (root, prepared):
        source = tfds.data_source("dossr_pairs", split="train", data_dir=str(folder))
        assert len(source) == len(ours) == 18
        for item in pickle.loads(pickle.dumps(source)):
            record = ours[item["name"].decode()]
            np.testing.assert_array_equal(item["hr"], record.hr)
            np.testing.assert_array_equal(item["lr"], record.lr)
    assert isinstance(tfds.builder("dossr_pairs", data_dir=prepared), tfds_builder.DossrPairs)


def test_the_catalogue_and_the_folder_train_alike(root, tmp_path, compiled_quickly):
    """Same pictures, same losses, to the last bit; a worker reads the catalogue."""
    data = DataConfig(crop=16, batch=4, workers=0)
    config = functools.partial(make_config, "rrdb", steps=20, validate_every=0, log_every=1)
    init = write_model(tmp_path / "init.safetensors", SMALL)
    prepared = root / "dossr_pairs" / "1.0.0"
    train(config(data=data), data=prepared, output=tmp_path / "a", init=init)
    data = DataConfig(crop=16, batch=4, workers=1)
    train(config(data=data), data=Path("tfds:dossr_pairs"), output=tmp_path / "b", init=init)
    one, two = ((tmp_path / run / METRICS_FILE).read_text() for run in "ab")
    assert one == two and len(one.splitlines()) == 20
    assert all(np.isfinite(json.loads(line)["loss"]) for line in one.splitlines())


def test_neither_tensorflow_nor_jax_is_imported(root):
    script = (
        "import sys, pathlib; from dossr_jax.data.sources import open_source;"
        "open_source(pathlib.Path('tfds:dossr_pairs'), split='train', hold_out=20)[0];"
        "print([m for m in ('jax', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "Dataset nothing not found.*; give tfds:NAME or tfds:NAME/SPLIT"),
        ("", "give tfds:NAME"),
        ("other/test", "Unknown split 'test'"),
        ("dossr_pairs:9.9.9", "give tfds:NAME"),
        ("mnist", "not prepared in .*; run tfds build mnist --file_format=array_record"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        images(name)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"tfds:{name}")


def test_a_data_set_without_images_is_refused(root):
    shutil.copytree(root / "plain", root / "bare")
    path = root / "bare" / "1.0.0" / "features.json"
    content = json.loads(path.read_text())
    features = content["featuresDict"]["features"]
    features["photo"] = features.pop("image")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tfds:bare: has no feature 'hr' or 'image', but"):
        images("bare")
    path.write_text(path.read_text().replace("featuresDict", "nothing"))
    with pytest.raises(UserError, match='tfds:bare: .*no field named "nothing"'):
        images("bare")
