"""Metrics with learned weights, by pyiqa: the extra dossr-jax[iqa].

pyiqa downloads what it does not find. Nothing is fetched here: the files are looked for before,
where pyiqa, torchvision, CLIP and timm keep them, and while pyiqa builds a metric no connection can
be made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dossr_jax.errors import UserError, require_extra


@dataclasses.dataclass(frozen=True)
class Model:
    """A metric of pyiqa, and the files it is built from.

    Attributes:
      files: below the folder of torch.hub: $TORCH_HOME/hub, by default ~/.cache/torch/hub.
      cached: (repository, file) in the Hugging Face cache, for timm.
      least: smallest side that is measured. LPIPS and CLIP-IQA need 31 pixels; MANIQA looks at
        crops of 224, and pyiqa enlarges what has no more than that.
    """

    title: str
    better: Literal["higher", "lower"]
    needs_reference: bool
    files: tuple[str, ...]
    cached: tuple[tuple[str, str], ...] = ()
    least: int = 32


_VIT = (("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", "model.safetensors"),)
_RESNET = (("timm/resnet50.a1_in1k", "model.safetensors"),)
# Names, files and repositories of pyiqa 0.1.16 and timm 1.0.
MODELS = {
    "lpips": Model(
        "LPIPS 0.1, AlexNet",
        "lower",
        True,
        ("pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth"),
    ),
    "dists": Model(
        "DISTS",
        "lower",
        True,
        ("pyiqa/DISTS_weights-f5e65c96.pth", "checkpoints/vgg16-397923af.pth"),
    ),
    "clipiqa": Model("CLIP-IQA, ResNet-50", "higher", False, ("clip/RN50.pt",)),
    "musiq": Model("MUSIQ, KonIQ-10k", "higher", False, ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
    "maniqa": Model(
        "MANIQA, KonIQ-10k", "higher", False, ("pyiqa/ckpt_koniq10k.pt",), _VIT, least=224
    ),
    "topiq_nr": Model(
        "TOPIQ, KonIQ-10k", "higher", False, ("pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",), _RESNET
    ),
    "topiq_fr": Model(
        "TOPIQ, KADID-10k", "higher", True, ("pyiqa/cfanet_fr_kadid_res50-2c4cc61d.pth",), _RESNET
    ),
}


def measure(name: str, image: np.ndarray, reference: np.ndarray | None) -> float:
    """A metric of images uint8 (h, w, 3); only those with a reference look at it.

    Raises:
      UserError: pyiqa cannot build the metric from what is on the disk.
    """
    import torch

    used = [image]
    if MODELS[name].needs_reference:
        assert reference is not None
        used.append(reference)
    tensors = [torch.from_numpy(np.moveaxis(a, -1, 0)[None].astype(np.float32) / 255) for a in used]
    with torch.no_grad():
        return float(load_metric(name)(*tensors))


@functools.cache
def load_metric(name: str) -> Callable[..., Any]:
    """pyiqa's metric, which takes float tensors (1, 3, h, w) in [0, 1].

    Raises:
      UserError: pyiqa or a file of weights is missing, or does not build the metric.
    """
    require_extra("iqa", "pyiqa", wanted_by=name)
    with _offline(name):
        _check_files(name)
        import pyiqa  # pyright: ignore[reportMissingImports] - needs torchvision

        # pyiqa prints which files it loads; standard output belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            return pyiqa.create_metric(name, device="cpu")


def _check_files(name: str) -> None:
    """Raise UserError that names the first file that is missing."""
    for file in MODELS[name].files:
        path = _hub_folder() / file
        if not path.is_file():
            raise UserError(f"{name}: {path} is missing; put the weights of that name there")
    for repository, file in MODELS[name].cached:
        from huggingface_hub import constants, try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(repository, file), str):
            raise UserError(
                f"{name}: {file} of {repository} is missing in {constants.HF_HUB_CACHE}; "
                f"put it there by 'hf download {repository} {file}'"
            )


def _hub_folder() -> Path:
    from torch import hub

    return Path(hub.get_dir())


@contextlib.contextmanager
def _offline(name: str) -> Iterator[None]:
    """Inside, no connection can be made and no host looked up; what goes wrong is a UserError."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("a file that is missing, or is not the published one, would be downloaded")

    kept, os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE"), "1"
    connect, socket.socket.connect = socket.socket.connect, refuse
    look_up, socket.getaddrinfo = socket.getaddrinfo, refuse
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyiqa and the libraries below it raise almost anything.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{name}: pyiqa cannot build it from the weights in {_hub_folder()} and the Hugging "
            f"Face cache ({reason}); see docs/evaluation.md for the files it needs"
        ) from error
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, look_up
        if kept is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = kept
