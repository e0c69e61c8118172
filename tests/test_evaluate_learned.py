"""pyiqa's metrics, with a stand-in for pyiqa: nothing is fetched, what is missing is named."""

import socket
import sys
import types

import numpy as np
import pytest
import torch

from dossr_jax.errors import UserError
from dossr_jax.evaluate import METRICS, learned, score


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    learned._metric.cache_clear()
    yield tmp_path / "hub"
    learned._metric.cache_clear()


def provide(hub, name: str) -> None:
    for file in learned.MODELS[name].files:
        (hub / file).parent.mkdir(parents=True, exist_ok=True)
        (hub / file).touch()


@pytest.fixture
def pyiqa(monkeypatch):
    """A pyiqa whose metrics are made by `pyiqa.create_metric`, to be set by the test."""
    module = types.ModuleType("pyiqa")
    module.__spec__ = types.SimpleNamespace(name="pyiqa")
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (2, 230, 240, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", learned.MODELS)
def test_missing_weights_are_named_with_their_place(hub, pyiqa, name):
    *first, last = learned.MODELS[name].files
    with pytest.raises(UserError, match=str(hub)):
        METRICS[name].check()
    provide(hub, name)
    METRICS[name].check()
    (hub / last).unlink()
    with pytest.raises(UserError, match=f"{hub / last} is missing"):
        METRICS[name].check()


@pytest.mark.parametrize("name", learned.MODELS)
def test_images_arrive_as_pyiqa_wants_them(hub, pyiqa, name):
    """Planes in [0, 1], float32, batches of one, the reference second; built only once."""
    provide(hub, name)
    calls = []

    def create_metric(wanted, device):
        def metric(*tensors):
            calls.append((wanted, device, tensors))
            return torch.tensor([[0.25]])

        return metric

    pyiqa.create_metric = create_metric
    image, reference = images()
    for _ in range(2):
        assert score(image, reference, [name]) == {name: 0.25}
    wanted, device, tensors = calls[1]
    assert (wanted, device) == (name, "cpu")
    expected = (image, reference)[: 1 + learned.MODELS[name].needs_reference]
    assert len(tensors) == len(expected)
    for tensor, array in zip(tensors, expected, strict=True):
        assert tensor.dtype == torch.float32 and tensor.shape == (1, 3, 230, 240)
        np.testing.assert_allclose(tensor[0].numpy(), array.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_no_connection_can_be_made_while_a_metric_is_built(hub, pyiqa):
    provide(hub, "musiq")

    def create_metric(wanted, device):
        socket.create_connection(("127.0.0.1", 9), timeout=1)

    pyiqa.create_metric = create_metric
    connect = socket.socket.connect
    with pytest.raises(UserError, match="musiq: .*wants to download a file"):
        score(*images(), ["musiq"])
    assert socket.socket.connect is connect


def test_without_pyiqa_the_extra_is_named(hub, monkeypatch):
    provide(hub, "dists")
    monkeypatch.setattr(learned.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dossr-jax\[iqa\]"):
        METRICS["dists"].check()
