"""Training from Python: images, an optimizer and checkpoints of one's own."""

import functools
import re

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers.distributed_worker import ROOT
from helpers.models import tiny_model
from helpers.pictures import picture, quarter
from helpers.runs import write_model
from helpers.small import SMALL, make_config

from dossr_jax import systems
from dossr_jax.config import DataConfig
from dossr_jax.data.own import as_source
from dossr_jax.errors import UserError
from dossr_jax.training import fit
from dossr_jax.training.journal import METRICS_FILE
from dossr_jax.training.stages import RRDBStage

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = make_config(
    "rrdb", data=DataConfig(crop=16, batch=4, workers=0), save_every=2, validate_every=0
)
PICTURES = [picture(20, 24, seed) for seed in range(6)]
PAIRS = [{"hr": hr, "lr": quarter(hr)} for hr in PICTURES]
TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.lion(optax.linear_schedule(1e-3, 0.0, 10)),
    optax.contrib.reduce_on_plateau(accumulation_size=1),
)


@pytest.fixture(scope="module")
def train(compiled_quickly, tmp_path_factory):
    init = write_model(tmp_path_factory.mktemp("start") / "init.safetensors", SMALL)
    return functools.partial(fit, RRDBStage(), config=CONFIG, tx=TX, init=init)


@pytest.fixture(scope="module")
def whole(train):
    """The state after four steps without a stop, nothing of which was written."""
    trained = train(PAIRS, steps=4)
    assert trained.complete
    return trained.run.state


def assert_same(state, other):
    paths = jax.tree_util.tree_leaves_with_path(state)
    for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_the_documented_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Random weights that compile nothing; the example begins with those of a new run.
    monkeypatch.setattr(
        "dossr_jax.training.params.make_model", lambda config, seed, **_: tiny_model(seed, config)
    )
    text = (ROOT / "docs" / "training.md").read_text().split("## From Python")[1]
    example = re.search(r"```python\n(.*?)```", text, flags=re.S)[1]
    exec(compile(example, "example", "exec"), {})
    assert systems.load_model(tmp_path / "own.safetensors").config.rrdb.num_blocks == 1
    assert '"step": 20' in (tmp_path / "runs" / "own" / METRICS_FILE).read_text()


def test_a_run_resumes_bit_for_bit_with_an_optimizer_of_ones_own(train, whole, tmp_path):
    train(PAIRS, steps=2, output=tmp_path)
    resumed = train(PAIRS, steps=4, output=str(tmp_path))
    assert_same(resumed.run.state, whole)
    with pytest.raises(UserError, match="does not fit this version or optimizer"):
        train(PAIRS, steps=5, output=tmp_path, tx=optax.sgd(1e-3))


def test_a_run_resumes_bit_for_bit_from_a_manager_of_ones_own(train, whole, tmp_path):
    options = ocp.CheckpointManagerOptions(save_interval_steps=3, max_to_keep=2)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        train(PAIRS, steps=2, manager=manager)
        assert list(manager.all_steps()) == [0, 2]  # by its interval, and the end
        assert_same(train(PAIRS, steps=4, manager=manager).run.state, whole)
        assert list(manager.all_steps()) == [3, 4]
        with pytest.raises(UserError, match="seed is 0 there, 1 now"):
            config = make_config("rrdb", data=CONFIG.data, seed=1)
            fit(RRDBStage(), PAIRS, config=config, tx=TX, manager=manager)
        with pytest.raises(UserError, match="not a checkpoint of this run's state and optimizer"):
            train(PAIRS, steps=5, manager=manager, tx=optax.sgd(1e-3))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_grain_source_of_the_same_images_gives_the_same_weights(train, whole):
    source = grain.MapDataset.source(PAIRS)
    assert as_source(source).fingerprint != as_source(PAIRS[1:]).fingerprint
    assert_same(train(source, steps=4).run.state, whole)


def test_items_are_images_or_dicts_of_them():
    record = as_source(PICTURES)[2]
    assert (record.name, record.lr) == ("list[2]", None)
    np.testing.assert_array_equal(record.hr, PICTURES[2])
    assert as_source([{"hr": PICTURES[0], "name": b"a"}])[0].name == "a"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "hr is NoneType; give an array"),
        ({"image": PICTURES[0]}, "hr is NoneType"),
        (PICTURES[0] / 255, "hr is float64; give an array"),
        (PICTURES[0][..., 0], r"hr has shape \(20, 24\)"),
        ({"hr": PICTURES[0], "lr": PICTURES[0][:-4]}, "neither exactly 4 times as large"),
    ],
)
def test_items_of_another_kind_are_refused(item, message):
    with pytest.raises(UserError, match=message):
        as_source([item])[0]
    with pytest.raises(UserError, match="holds no images"):
        as_source([])
