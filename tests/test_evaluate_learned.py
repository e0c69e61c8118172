"""pyiqa's metrics, with a stand-in for pyiqa: nothing is fetched, what is missing is named."""

import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import save
from huggingface_hub import constants, hf_hub_download
from test_cli import assert_one_error

from dossr_jax.errors import UserError
from dossr_jax.evaluate import METRICS, convention, learned, score
from dossr_jax.evaluate.__main__ import main
from dossr_jax.evaluate.scores import get_metric

CONFIGS = {
    "gmsd": {"metric_opts": {"type": "GMSD", "c": 1}, "metric_mode": "FR", "lower_better": True},
    "nima-koniq": {"metric_opts": {"type": "NIMA"}, "metric_mode": "NR"},
    "fid": {"metric_opts": {"type": "FID"}, "metric_mode": "NR", "lower_better": True},
}


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
    module.__version__ = "0.0"
    configs = types.ModuleType("pyiqa.default_model_configs")
    configs.DEFAULT_CONFIGS = CONFIGS
    for name, content in (("pyiqa", module), (configs.__name__, configs)):
        monkeypatch.setitem(sys.modules, name, content)
    learned.find_model.cache_clear()
    yield module
    learned.find_model.cache_clear()


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


@pytest.mark.parametrize("name", ["dists", "pyiqa:gmsd"])
def test_without_pyiqa_the_extra_is_named(hub, monkeypatch, name):
    learned.find_model.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{name}: .*dossr-jax\[iqa\]"):
        get_metric(name).check()


@pytest.mark.parametrize(
    "name, better, compares", [("gmsd", "lower", True), ("nima-koniq", "higher", False)]
)
def test_any_metric_of_pyiqa_has_the_direction_and_the_inputs_that_pyiqa_says(
    hub, pyiqa, name, better, compares
):
    metric, calls = get_metric(f"pyiqa:{name}"), []
    assert (metric.better, metric.needs_reference) == (better, compares)
    assert convention(f"pyiqa:{name}").startswith(f"{name} of pyiqa 0.0 (")

    def create_metric(wanted, device):
        return lambda *tensors: calls.append((wanted, len(tensors))) or torch.tensor([0.5])

    pyiqa.create_metric = create_metric
    assert score(*images(), [f"pyiqa:{name}"]) == {f"pyiqa:{name}": 0.5}
    assert calls == [(name, 1 + compares)]


@pytest.mark.parametrize(
    "name, words",
    [("gsmd", "0.0 has no such metric; it has gmsd"), ("fid", "compares folders"), ("", "gmsd, n")],
)
def test_what_pyiqa_has_not_and_what_is_no_number_per_image_is_refused(pyiqa, name, words):
    with pytest.raises(UserError, match=words):
        get_metric(f"pyiqa:{name}")


def _download(url: str, root: str):
    """As in CLIP."""
    socket.create_connection(("localhost", 9), timeout=1)


@pytest.mark.parametrize(
    "fetch, words",
    [
        (
            lambda hub: torch.hub.load_state_dict_from_url("https://host/a-12.pth"),
            ["hub/checkpoints/a-12.pth is missing", "from https://host/a-12.pth"],
        ),
        (
            lambda hub: _download("https://host/digest/RN50.pt", f"{hub}/clip"),
            ["hub/clip/RN50.pt is missing", "from https://host/digest/RN50.pt"],
        ),
        (
            lambda hub: hf_hub_download("owner/model", "m.bin", cache_dir=hub),
            ["owner/model is missing", "hf download owner/model"],
        ),
    ],
)
def test_a_file_that_any_metric_would_download_is_named_with_its_place(hub, pyiqa, fetch, words):
    def create_metric(wanted, device):
        try:
            fetch(hub)
        except Exception as error:  # as libraries do
            raise RuntimeError("cannot load") from error

    pyiqa.create_metric = create_metric
    with pytest.raises(UserError, match="^pyiqa:gmsd: ") as caught:
        get_metric("pyiqa:gmsd").check()
    for word in words:
        assert word in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_that_pyiqa_cannot_measure_stops_no_other(hub, pyiqa, tmp_path, capsys):
    for name, side in (("a", 40), ("b", 20), ("c", 30)):
        save(tmp_path / "sr" / f"{name}.png", images()[0][:side, :40])

    def metric(image):
        assert image.shape[2] > 20, "too small"
        return torch.tensor(0.25 if image.shape[2] > 30 else torch.nan)

    pyiqa.create_metric = lambda wanted, device: metric
    assert main([str(tmp_path / "sr"), "--metrics", "pyiqa:nima-koniq"]) == 2
    said = capsys.readouterr()
    assert "0.2500" in said.out and "not defined for 1 images too small or flat (c)" in said.out
    assert_one_error(said.err, "b.png", "too small")
