"""pyiqa's metrics, with a stand-in for pyiqa: nothing is fetched, what is missing is named."""

import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import save
from huggingface_hub import constants

from dossr_jax.errors import UserError
from dossr_jax.evaluate import METRICS, learned, score
from dossr_jax.evaluate.__main__ import main


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub, beside an empty Hugging Face cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    learned.load_metric.cache_clear()
    yield tmp_path / "hub"
    learned.load_metric.cache_clear()


def provide(hub, name: str) -> None:
    for path in places(hub, name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def places(hub, name: str) -> list[Path]:
    """Where the files of a metric lie; the Hugging Face cache points to one revision of each."""
    model = learned.MODELS[name]
    found = [hub / file for file in model.files]
    for repository, file in model.cached:
        folder = hub.parent / "hf" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("0")
        found.append(folder / "snapshots" / "0" / file)
    return found


@pytest.fixture
def pyiqa(monkeypatch):
    """A pyiqa whose metrics are made by `pyiqa.create_metric`, which a test may set."""
    module = types.ModuleType("pyiqa")
    module.create_metric = lambda name, device: name
    module.__spec__ = types.SimpleNamespace(name="pyiqa")
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (2, 230, 240, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", learned.MODELS)
def test_missing_weights_are_named_with_their_place(hub, pyiqa, name):
    provide(hub, name)
    METRICS[name].check()
    for path in places(hub, name):
        learned.load_metric.cache_clear()
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name}.* is missing") as caught:
            METRICS[name].check()
        assert str(hub.parent) in str(caught.value) and "\n" not in str(caught.value)
        path.touch()


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


def connect_directly():
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", 9))


@pytest.mark.parametrize(
    "ask",
    [
        connect_directly,
        lambda: socket.getaddrinfo("localhost", 9),
        lambda: socket.create_connection(("localhost", 9), timeout=1),
    ],
)
def test_no_connection_can_be_made_while_a_metric_is_built(hub, pyiqa, ask):
    provide(hub, "musiq")
    pyiqa.create_metric = lambda wanted, device: ask()
    before = socket.socket.connect, socket.getaddrinfo
    with pytest.raises(UserError, match="musiq: .*would be downloaded"):
        score(*images(), ["musiq"])
    assert (socket.socket.connect, socket.getaddrinfo) == before


def test_a_metric_that_cannot_be_built_is_refused_before_anything_is_measured(
    hub, pyiqa, tmp_path, capsys
):
    provide(hub, "dists")
    for place in ("restored", "hr"):
        save(tmp_path / place / "a.png", images()[0])

    def create_metric(wanted, device):
        print("Loading")
        raise RuntimeError("size mismatch\nfor alpha")

    pyiqa.create_metric = create_metric
    arguments = [str(tmp_path / "restored"), "--hr", str(tmp_path / "hr"), "--metrics", "dists"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    said = [line for line in printed.err.splitlines() if line != "Loading"]
    assert len(said) == 1 and "dists" in said[0] and "size mismatch for alpha" in said[0]


def test_without_pyiqa_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dossr-jax\[iqa\]"):
        METRICS["dists"].check()
