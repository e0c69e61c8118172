"""Metrics by name: what each one means, and its value for an image.

Images are uint8 (h, w, 3), RGB; a grey image is three equal channels.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dossr_jax import metrics
from dossr_jax.errors import UserError, require_extra
from dossr_jax.evaluate import learned, tables
from dossr_jax.evaluate.niqe import BLOCK, niqe
from dossr_jax.evaluate.tiles import mean_ssim


class Undefined(UserError):
    """A metric has no value for an image, for what the image is: too small, or flat."""


# Pixels at every edge that PSNR and SSIM leave out: the scale, as in the literature of x4.
BORDER = 4


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number for an image, and what has to be said with it.

    Attributes:
      convention: channel, range, window, source: one line.
      better: which values are better.
      needs_reference: whether it compares with the ground truth.
      measure: (image, reference or None) -> value, images uint8 (h, w, 3).
      cropped: whether the border is cut off first.
      least: smallest side, after cropping.
      check: raises UserError where a library or weights are missing that the metric needs.
    """

    convention: str
    better: Literal["higher", "lower"]
    needs_reference: bool
    measure: Callable[..., float]
    cropped: bool = False
    least: int = 1
    check: Callable[[], object] = lambda: None


def luma(image: np.ndarray) -> np.ndarray:
    """Y of an RGB image uint8 (h, w, 3), float64 (h, w) from 16 to 235, not rounded.

    65.481 R + 128.553 G + 24.966 B + 16 with R, G, B in [0, 1] (BT.601, MATLAB's rgb2ycbcr).
    """
    return image / 255 @ np.array(metrics.LUMA) + metrics.LUMA_OFFSET


def _of_luma(measure: Callable[..., float]) -> Callable[..., float]:
    return lambda *images: measure(*(luma(image)[..., None] for image in images))


def _psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB of images of range 255; inf for equal ones."""
    mean = float(np.mean(np.square(np.subtract(image, reference, dtype=np.float64))))
    return 10 * float(np.log10(255**2 / mean)) if mean else float("inf")


def _defined(
    measure: Callable[[np.ndarray], float], image: np.ndarray, reference: np.ndarray | None
) -> float:
    """A metric without a reference that is nan where it has no value."""
    value = measure(image)
    if np.isnan(value):
        raise Undefined("niqe of a flat image is not defined")
    return value


def _ssimulacra2(image: np.ndarray, reference: np.ndarray) -> float:
    from ssimulacra2 import compute_ssimulacra2

    # The library reads nothing but files.
    files = io.BytesIO(), io.BytesIO()
    for file, content in zip(files, (reference, image), strict=True):
        Image.fromarray(content).save(file, "BMP")
    return float(compute_ssimulacra2(*files))


def _flip(image: np.ndarray, reference: np.ndarray) -> float:
    import flip_evaluator

    truth, other = (a.astype(np.float32) / 255 for a in (reference, image))
    _, mean, _ = flip_evaluator.evaluate(
        truth, other, "LDR", applyMagma=False, computeMeanError=True
    )
    return float(mean)


def _by_pyiqa(name: str, model: learned.Model, convention: str) -> Metric:
    def measure(image: np.ndarray, reference: np.ndarray | None) -> float:
        value = learned.measure(name, image, reference if model.needs_reference else None)
        if np.isnan(value):
            raise Undefined(f"{name} of this image is not defined")
        return value

    return Metric(
        convention,
        model.better,
        model.needs_reference,
        measure,
        least=model.least,
        check=functools.partial(learned.load_metric, name),
    )


_Y = "Y = 65.481 R + 128.553 G + 24.966 B + 16 on [0, 1], float, not rounded"
_SSIM = "Gaussian window 11x11, deviation 1.5, where it fits; K1 0.01, K2 0.03; range 255"

OWN: dict[str, Metric] = {
    "psnr_y": Metric(f"dB, range 255; {_Y}", "higher", True, _of_luma(_psnr), True),
    "psnr_rgb": Metric(
        "dB, range 255; one mean over the three channels", "higher", True, _psnr, True
    ),
    "ssim_y": Metric(
        f"{_SSIM}; Y as PSNR", "higher", True, _of_luma(mean_ssim), True, metrics.WINDOW
    ),
    "ssim_rgb": Metric(
        f"{_SSIM}; mean over the three channels", "higher", True, mean_ssim, True, metrics.WINDOW
    ),
    "niqe": Metric(
        "LIVE's parameters, blocks of 96x96; Y as PSNR, rounded; half size by MATLAB's bicubic",
        "lower",
        False,
        functools.partial(_defined, lambda image: niqe(luma(image))),
        least=2 * BLOCK,
    ),
}
_TABLES = {
    "psnr_y_table": Metric(
        "as in the field's tables: Y as psnr_y; 1e-8 added to the squared error of [0, 1]",
        "higher",
        True,
        tables.psnr_y,
    ),
    "ssim_y_table": Metric(
        "as in the field's tables: as ssim_y, but Y rounded and negative places counted as 0",
        "higher",
        True,
        tables.ssim_y,
        least=metrics.WINDOW,
    ),
    "niqe_table": Metric(
        "as in the field's tables: as niqe, but Y = 76.245 R + 149.685 G + 29.07 B on [0, 1], "
        "and the roundings of pyiqa",
        "lower",
        False,
        functools.partial(_defined, tables.niqe),
        least=BLOCK,
    ),
}
METRICS: dict[str, Metric] = (
    OWN
    | _TABLES
    | {
        "ssimulacra2": Metric(
            "SSIMULACRA 2 by the library ssimulacra2, in NumPy; up to 100",
            "higher",
            True,
            _ssimulacra2,
            least=8,
            check=functools.partial(require_extra, "perceptual", "ssimulacra2"),
        ),
        "flip": Metric(
            "mean LDR-FLIP by NVIDIA's flip-evaluator, 67 pixels per degree; 0 to 1",
            "lower",
            True,
            _flip,
            check=functools.partial(require_extra, "perceptual", "flip_evaluator"),
        ),
    }
    | {
        name: _by_pyiqa(
            name, model, f"{model.title}, weights {Path(model.files[0]).name}, by pyiqa"
        )
        for name, model in learned.MODELS.items()
    }
)


def get_metric(name: str) -> Metric:
    """The metric of a name: one of METRICS, or "pyiqa:" and any that pyiqa has.

    Raises:
      UserError: there is none of that name, or pyiqa is not installed.
    """
    if name.startswith(learned.PREFIX):
        model = learned.find_model(name)
        return _by_pyiqa(name, model, model.title)
    if name not in METRICS:
        raise UserError(
            f"no metric {name!r}; choose from {', '.join(METRICS)}, {learned.PREFIX}NAME"
        )
    return METRICS[name]


def check_metrics(names: Iterable[str]) -> None:
    """Raise UserError where a name is no metric, or a metric lacks a library or weights."""
    for name in names:
        get_metric(name).check()


def convention(name: str, *, border: int = BORDER) -> str:
    """What a metric is, in one line, with its border and direction."""
    metric = get_metric(name)
    edge = f"{border} px border left out" if metric.cropped else "whole image"
    return f"{metric.convention}; {edge}; {metric.better} is better"


def score(
    image: np.ndarray,
    reference: np.ndarray | None,
    names: Iterable[str],
    *,
    border: int = BORDER,
) -> dict[str, float]:
    """Values of metrics by name.

    Args:
      image: uint8 (h, w, 3).
      reference: the ground truth, of the same shape and dtype; may be None where no metric
        needs it.
      border: pixels at every edge that PSNR and SSIM leave out.

    Raises:
      Undefined: the image is too small for a metric, or flat.
      UserError: an unknown metric, a metric without its reference, images of different sizes, or
        what a metric needs and lacks.
    """
    names = list(names)
    check_metrics(names)
    if reference is not None and image.shape != reference.shape:
        raise UserError(
            f"{sides(image)} pixels against {sides(reference)} of the reference; "
            "compare images of one size"
        )
    values = {}
    for name in names:
        metric = get_metric(name)
        if metric.needs_reference and reference is None:
            raise UserError(f"{name} needs a reference; give the ground truth, or leave it out")
        edge = border if metric.cropped else 0
        if min(image.shape[:2]) - 2 * edge < metric.least:
            raise Undefined(
                f"{sides(image)} pixels are too few for {name}: it needs {metric.least} per side"
                + (f" inside a border of {edge}" if edge else "")
            )
        values[name] = metric.measure(
            _inside(image, edge), None if reference is None else _inside(reference, edge)
        )
    return values


def _inside(image: np.ndarray, border: int) -> np.ndarray:
    height, width = image.shape[:2]
    return image[border : height - border, border : width - border]


def sides(image: np.ndarray) -> str:
    """Width and height of an image (h, w, ...) as text."""
    return f"{image.shape[1]}x{image.shape[0]}"
