"""Metrics with learned weights, by pyiqa: the extra dossr-jax[iqa].

pyiqa downloads what it does not find. Nothing is fetched here: the files are looked for before,
where pyiqa, torchvision, CLIP and timm keep them, and while pyiqa builds a metric no connection can
be made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dossr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    """A metric of pyiqa, and its files below the folder of torch.hub, or of the Hugging Face hub.

    `least`: smallest side that its network can take.
    """

    title: str
    better: Literal["higher", "lower"]
    needs_reference: bool
    files: tuple[Path, ...]
    least: int = 32


def _model(title: str, better: str, needs_reference: bool, *files: str, least: int = 32) -> Model:
    return Model(title, better, needs_reference, tuple(map(Path, files)), least)


# Names of pyiqa 0.1.16; files as its sources name them.
MODELS: dict[str, Model] = {
    "lpips": _model(
        "LPIPS 0.1, AlexNet",
        "lower",
        True,
        "pyiqa/LPIPS_v0.1_alex-df73285e.pth",
        "checkpoints/alexnet-owt-7be5be79.pth",
        least=64,
    ),
    "dists": _model(
        "DISTS",
        "lower",
        True,
        "pyiqa/DISTS_weights-f5e65c96.pth",
        "checkpoints/vgg16-397923af.pth",
    ),
    "clipiqa": _model("CLIP-IQA, ResNet-50", "higher", False, "clip/RN50.pt"),
    "musiq": _model("MUSIQ, KonIQ-10k", "higher", False, "pyiqa/musiq_koniq_ckpt-e95806b9.pth"),
    "maniqa": _model("MANIQA, KonIQ-10k", "higher", False, "pyiqa/ckpt_koniq10k.pt", least=224),
    "topiq_nr": _model(
        "TOPIQ, KonIQ-10k", "higher", False, "pyiqa/cfanet_nr_koniq_res50-9a73138b.pth"
    ),
    "topiq_fr": _model(
        "TOPIQ, KADID-10k", "higher", True, "pyiqa/cfanet_fr_kadid_res50-2c4cc61d.pth"
    ),
}


def hub_folder() -> Path:
    """Where torch.hub keeps weights: $TORCH_HOME/hub, by default ~/.cache/torch/hub."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(home).expanduser() / "hub"


def check(name: str) -> None:
    """Raise UserError where pyiqa or a file of weights is missing."""
    for file in MODELS[name].files:
        path = hub_folder() / file
        if not path.is_file():
            raise UserError(f"{name}: {path} is missing; put the weights of that name there")
    if importlib.util.find_spec("pyiqa") is None:
        raise UserError(f"{name}: pyiqa is not installed; pip install 'dossr-jax[iqa]'")


def measure(name: str, image: np.ndarray, reference: np.ndarray | None) -> float:
    """A metric of images uint8 (h, w, 3); only those with a reference look at it.

    Raises:
      UserError: pyiqa cannot build the metric from what is on the disk.
    """
    import torch

    used = (image, reference) if MODELS[name].needs_reference else (image,)
    tensors = [torch.from_numpy(np.moveaxis(a, -1, 0)[None].astype(np.float32) / 255) for a in used]
    with torch.no_grad():
        return float(_metric(name)(*tensors))


@functools.cache
def _metric(name: str) -> Callable[..., Any]:
    check(name)
    with _offline(name):
        import pyiqa

        return pyiqa.create_metric(name, device="cpu")


@contextlib.contextmanager
def _offline(name: str) -> Iterator[None]:
    """Inside, no connection can be made; whatever goes wrong is a UserError."""

    def refuse(*arguments: Any) -> None:
        raise OSError("it wants to download a file")

    kept, os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE"), "1"
    connect, socket.socket.connect = socket.socket.connect, refuse
    try:
        yield
    except Exception as error:  # pyiqa and the libraries below it raise almost anything.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{name}: pyiqa cannot build it from the weights in {hub_folder()} and the Hugging "
            f"Face cache ({reason}); see docs/evaluation.md for the files it needs"
        ) from error
    finally:
        socket.socket.connect = connect
        if kept is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = kept
