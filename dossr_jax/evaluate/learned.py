"""Metrics with learned weights, by pyiqa: the extra dossr-jax[iqa].

pyiqa downloads what it does not find. Nothing is fetched here: files of the metrics in MODELS are
looked for before, where pyiqa, torchvision, CLIP and timm keep them. While pyiqa builds any metric
or measures, no connection can be made, and the file that it asks for is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from dossr_jax.errors import UserError, require_extra
from dossr_jax.evaluate.offline import check_cached, hub_folder, offline


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


PREFIX = "pyiqa:"
# What has another shape than a number for an image, by what stands in its way.
_REFUSED = {
    "fid": "compares folders",
    "sfid": "compares folders",
    "fid_dinov2": "compares folders",
    "inception_score": "measures folders",
    "clipscore": "compares an image with a text",
    "fgresq_pair": "ranks two images",
}


@functools.cache
def find_model(name: str) -> Model:
    """What pyiqa says of its metric "pyiqa:NAME", with its defaults.

    Raises:
      UserError: pyiqa is not installed or has no such metric, or one that is no number per image.
    """
    plain = name.removeprefix(PREFIX)
    known, version = _known(name)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, 5, 0.5) or sorted(known)
        raise UserError(f"{name}: pyiqa {version} has no such metric; it has {', '.join(near)}")
    if plain in _REFUSED:
        raise UserError(
            f"{name} {_REFUSED[plain]}, not an image with its ground truth; keep the results by "
            "--save-images and give them to pyiqa itself"
        )
    options = dict(known[plain]["metric_opts"])
    kind = options.pop("type")
    words = ", ".join([kind, *(f"{option}={value}" for option, value in options.items())])
    return Model(
        f"{plain} of pyiqa {version} ({words})",
        "lower" if known[plain].get("lower_better") else "higher",
        known[plain]["metric_mode"] == "FR",
        (),
        least=1,
    )


def _known(wanted_by: str) -> tuple[Mapping[str, Any], str]:
    """pyiqa's table of metrics and its version."""
    require_extra("iqa", "pyiqa", wanted_by=wanted_by)
    with offline(wanted_by, "be imported"):
        import pyiqa  # pyright: ignore[reportMissingImports] - needs torchvision
        from pyiqa.default_model_configs import (  # pyright: ignore[reportMissingImports]
            DEFAULT_CONFIGS,
        )

    return DEFAULT_CONFIGS, pyiqa.__version__


def measure(name: str, image: np.ndarray, reference: np.ndarray | None) -> float:
    """A metric of images uint8 (h, w, 3); the reference only for those that compare.

    Raises:
      UserError: pyiqa cannot build the metric from what is on the disk, or measure this image.
    """
    import torch

    used = [image] if reference is None else [image, reference]
    tensors = [torch.from_numpy(np.moveaxis(a, -1, 0)[None].astype(np.float32) / 255) for a in used]
    metric = load_metric(name)
    # Some load a part of themselves when they first measure.
    with offline(name, "measure this image"), torch.no_grad():
        return float(metric(*tensors))


@functools.cache
def load_metric(name: str) -> Callable[..., Any]:
    """pyiqa's metric, which takes float tensors (1, 3, h, w) in [0, 1].

    Raises:
      UserError: pyiqa or a file of weights is missing, or does not build the metric.
    """
    require_extra("iqa", "pyiqa", wanted_by=name)
    with offline(name, "build it"):
        for file in MODELS[name].files if name in MODELS else ():
            path = hub_folder() / file
            if not path.is_file():
                raise UserError(f"{name}: {path} is missing; put the weights of that name there")
        for repository, file in MODELS[name].cached if name in MODELS else ():
            check_cached(name, repository, file)
        import pyiqa  # pyright: ignore[reportMissingImports] - needs torchvision

        # pyiqa prints which files it loads; standard output belongs to results.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            metric = pyiqa.create_metric(name.removeprefix(PREFIX), device="cpu")
        sys.stderr.write(said.getvalue())
        return metric
