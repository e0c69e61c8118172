"""The learned metrics with pyiqa itself, networks of random weights under the published names.

Shown for each: the files of our table are those that pyiqa opens, at the places and with the
layout of keys it expects; nothing is fetched; and the command line gives the value of pyiqa's own
call on the same files, so range, channels and the order of image and reference are right.
Published weights are not at hand: no value here is a quality.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from helpers.pictures import picture, save
from helpers.pyiqa import import_pyiqa

from dossr_jax.errors import UserError
from dossr_jax.evaluate import METRICS, learned, niqe, score
from dossr_jax.evaluate.__main__ import main
from dossr_jax.evaluate.scores import get_metric

# Neither installs everywhere: pyiqa's licence forbids commercial use, and it needs the torchvision
# that belongs to one version of torch.
pyiqa = import_pyiqa()

import timm  # noqa: E402 - comes with pyiqa
import torch  # noqa: E402
import torchvision  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from pyiqa.archs import clip_model  # noqa: E402
from pyiqa.archs.maniqa_arch import MANIQA  # noqa: E402
from pyiqa.archs.musiq_arch import MUSIQ  # noqa: E402
from pyiqa.archs.topiq_arch import CFANet  # noqa: E402
from pyiqa.default_model_configs import DEFAULT_CONFIGS  # noqa: E402
from pyiqa.utils import download_util  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
State = dict[str, torch.Tensor]
CLIP_RN50 = dict(
    embed_dim=1024,
    image_resolution=224,
    vision_layers=(3, 4, 6, 3),
    vision_width=64,
    vision_patch_size=None,
    context_length=77,
    vocab_size=49408,
    transformer_width=512,
    transformer_heads=8,
    transformer_layers=12,
)


class Node(torch.nn.Module):
    """A place for tensors in a TorchScript archive, as CLIP is published."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def backbone(model: torch.nn.Module) -> State:
    """Its classifier, which no metric uses, is one number: hundreds of megabytes less."""
    zero = torch.zeros(())
    return {
        name: zero.expand_as(value) if name.startswith("classifier") else value
        for name, value in model.state_dict().items()
    }


def clip_archive() -> torch.jit.ScriptModule:
    root = Node()
    for name, value in clip_model.CLIP(**CLIP_RN50).state_dict().items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    return torch.jit.script(root)


def lpips_heads() -> State:
    channels = (64, 192, 384, 256, 256)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}


def topiq(*, use_ref: bool) -> dict[str, State]:
    net = CFANet(use_ref=use_ref, pretrained=False, backbone_pretrain=False)
    return {"params": net.state_dict()}


# What is in the files of learned.MODELS, in their order.
CONTENTS: dict[str, list[Callable[[], object]]] = {
    "lpips": [lpips_heads, lambda: backbone(torchvision.models.alexnet())],
    "dists": [
        lambda: {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")},
        lambda: backbone(torchvision.models.vgg16(init_weights=False)),
    ],
    "clipiqa": [clip_archive],
    "musiq": [lambda: MUSIQ(pretrained=False).state_dict()],
    "maniqa": [lambda: MANIQA(pretrained=False, scale=0.8).state_dict()],
    "topiq_nr": [lambda: topiq(use_ref=False)],
    "topiq_fr": [lambda: topiq(use_ref=True)],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty folders of torch.hub and the Hugging Face cache, instead of those at import.

    In a run of its own the adapter sets HF_HUB_OFFLINE before huggingface_hub is imported.
    """
    folder = tmp_path / "home"
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(folder / "hub" / "pyiqa"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    learned.load_metric.cache_clear()
    yield folder
    learned.load_metric.cache_clear()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def weights(home, monkeypatch) -> Callable[[str], list[Path]]:
    """Writes random weights for a metric."""

    def write(name: str) -> list[Path]:
        torch.manual_seed(0)
        model, paths = learned.MODELS[name], []
        for repository, file in model.cached:  # first: MANIQA is not built without
            folder = home / "hf" / f"models--{repository.replace('/', '--')}"
            (folder / "refs").mkdir(parents=True, exist_ok=True)
            (folder / "refs" / "main").write_text("0" * 40)
            paths.append(folder / "snapshots" / ("0" * 40) / file)
            paths[-1].parent.mkdir(parents=True)
            architecture = repository.split("/")[1].split(".")[0]
            save_file(timm.create_model(architecture).state_dict(), paths[-1])
        for file, make in zip(model.files, CONTENTS[name], strict=True):
            paths.append(home / "hub" / file)
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            content = make()
            if isinstance(content, torch.jit.ScriptModule):
                content.save(str(paths[-1]))
                digest = hashlib.sha256(paths[-1].read_bytes()).hexdigest()
                # The published file is told by its digest, which is part of its address.
                monkeypatch.setitem(clip_model._MODELS, "RN50", f"https://host/{digest}/RN50.pt")
            else:
                torch.save(content, paths[-1])
        return paths

    return write


@pytest.fixture(scope="module")
def connections() -> list[str]:
    """Connections and look-ups of hosts that the process asks the system for, from now on."""
    asked: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            asked.append(f"{event} {args}")

    sys.addaudithook(hook)
    return asked


@pytest.mark.parametrize("name", learned.MODELS)
def test_the_value_is_that_of_pyiqa(name, weights, connections, tmp_path, monkeypatch, capsys):
    paths = weights(name)
    if name == "maniqa":  # one crop in place of 20, a minute each image
        monkeypatch.setitem(DEFAULT_CONFIGS[name]["metric_opts"], "test_sample", 1)
    image, reference = (picture(230, 250, seed) for seed in (0, 1))
    for folder, content in (("restored", image), ("hr", reference)):
        save(tmp_path / folder / "a.png", content)
    restored, hr = tmp_path / "restored", tmp_path / "hr"
    arguments = [restored, "--hr", hr, "--metrics", name, "--output", tmp_path / "out"]
    arguments = [str(a) for a in arguments]

    connections.clear()
    assert main(arguments) == 0
    assert "Loading" not in capsys.readouterr().out
    assert connections == []
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    value = content["results"][0]["images"]["a"][name]

    metric = pyiqa.create_metric(name, device="cpu")
    assert get_metric(f"pyiqa:{name}").better == METRICS[name].better
    assert metric.lower_better == (METRICS[name].better == "lower")
    assert (metric.metric_mode == "FR") == METRICS[name].needs_reference
    expected = metric(str(restored / "a.png"), str(hr / "a.png")).item()
    assert np.isfinite(value) and abs(value) > 1e-3
    # Float32 sums in another order from call to call.
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if name == "topiq_fr":  # the one that is not symmetric
        turned = metric(str(hr / "a.png"), str(restored / "a.png")).item()
        assert abs(turned - expected) > 1e-4

    side = learned.MODELS[name].least
    smallest = picture(side, side + 1, 2)
    assert np.isfinite(METRICS[name].measure(smallest, 255 - smallest))

    for path in paths:
        learned.load_metric.cache_clear()
        path.rename(path.with_suffix(".away"))
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path.name}" in line and "is missing" in line
        path.with_suffix(".away").rename(path)
    assert connections == []


# All but those of pyiqa 0.1.16 whose parameters are a file.
ARITHMETIC = (
    *("psnr", "psnry", "ssim", "ssimc", "ms_ssim", "cw_ssim", "fsim", "vif", "gmsd", "nlpd"),
    *("vsi", "mad", "piqe", "entropy"),
)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_metric_without_weights_is_measured_by_its_name(name, home, tmp_path):
    image, reference = (picture(230, 250, seed) for seed in (0, 1))
    for folder, content in (("restored", image), ("hr", reference)):
        save(tmp_path / folder / "a.png", content)
    folders = tmp_path / "restored", tmp_path / "hr"
    arguments = [str(folders[0]), "--hr", str(folders[1]), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--metrics", f"pyiqa:{name}"]) == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    metric = pyiqa.create_metric(name, device="cpu")
    expected = metric(*(str(folder / "a.png") for folder in folders)).item()
    value = content["results"][0]["mean"][f"pyiqa:{name}"]
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    better = "lower" if metric.lower_better else "higher"
    assert content["conventions"][f"pyiqa:{name}"].endswith(f"{better} is better")


def test_niqe_by_name_takes_the_parameters_that_lie_where_it_looks(home):
    with pytest.raises(UserError, match="pyiqa/niqe_modelparameters.mat is missing"):
        get_metric("pyiqa:niqe").check()
    path = home / "hub" / "pyiqa" / "niqe_modelparameters.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    mean, covariance = niqe.natural()
    scipy.io.savemat(path, {"mu_prisparam": mean[None], "cov_prisparam": covariance})
    image = picture(230, 250)
    values = score(image, None, ["pyiqa:niqe", "niqe_table"])
    assert values["pyiqa:niqe"] == pytest.approx(values["niqe_table"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(set(pyiqa.list_models()) - set(ARITHMETIC)))
def test_every_other_metric_names_the_file_that_it_lacks(name, home, connections):
    """Or the module of an extra that pyiqa itself does not ask for."""
    connections.clear()
    with pytest.raises(UserError) as caught:
        get_metric(f"pyiqa:{name}").check()
    words = ("is missing", "needs the module", "folders", "with a text", "two images")
    assert any(word in str(caught.value) for word in words), caught.value
    assert connections == []


def test_another_clip_than_the_published_one_is_not_replaced(home, connections):
    """CLIP is told by its digest, and pyiqa would fetch it anew."""
    path = home / "hub" / learned.MODELS["clipiqa"].files[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    connections.clear()
    with pytest.raises(UserError, match="not the published one"):
        METRICS["clipiqa"].check()
    assert path.read_bytes() == b"another" and connections == []
