"""The bench: a model and pairs of images, on which variants of settings are measured."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from dossr_jax import Upscaler
from dossr_jax.errors import UserError
from dossr_jax.evaluate import score
from dossr_jax.image_io import resample
from dossr_jax.pipeline import Settings
from dossr_jax.restore import UPSCALE
from experiments.data import Pair

NAMES = ("psnr_y", "ssim_y", "niqe", "ssimulacra2")
# The published sampler: stated in full, as a model may come with other defaults.
PUBLISHED = {
    "steps": 5,
    "order": 3,
    "solver": "sde",
    "grid": "uniform",
    "start": "lr",
    "final_denoise": False,
    "fidelity": 0.0,
    "color_fix": "wavelet",
    "seed": 0,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings to measure: `x` places them on a curve, `series` names the curve.

    `eta` is another shifting sequence than the model's own. `settings` replace those published;
    None stands for the model's stored defaults. `repeats` runs are timed, the fastest counts.
    """

    label: str
    settings: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    series: str = ""
    x: float | None = None
    eta: str | None = None
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Measured:
    """A variant's pictures (uint8, one a pair), their numbers, and seconds an image."""

    variant: Variant
    pictures: list[np.ndarray]
    scores: list[dict[str, float]]
    seconds: float | None = None

    def mean(self, name: str) -> float:
        """Mean of a metric over the images."""
        return statistics.fmean(scores[name] for scores in self.scores)

    def as_row(self, names: Sequence[str]) -> dict[str, Any]:
        """All but the pictures, for a JSON file."""
        return {
            **dataclasses.asdict(self.variant),
            "seconds_per_image": self.seconds,
            "mean": {name: self.mean(name) for name in names},
            "images": self.scores,
        }


class Bench:
    """A model, its pairs and the metrics that can be taken on them."""

    def __init__(self, upscaler: Upscaler, pairs: list[Pair]):
        self.upscaler, self.pairs = upscaler, pairs
        self.names, self.left_out = _usable_metrics(pairs)
        # The largest power of two that divides the number of images: no place runs empty.
        self._batch = min(8, len(pairs) & -len(pairs))
        self._warm: set[str | None] = set()

    @functools.cache  # noqa: B019 - a bench lives as long as the program
    def _with_eta(self, eta: str | None) -> Upscaler:
        if eta is None:
            return self.upscaler
        model = self.upscaler.model
        process = dataclasses.replace(model.config.process, eta=eta)
        model.config = dataclasses.replace(model.config, process=process)
        return Upscaler(model)

    def measure(self, variant: Variant) -> Measured:
        """Restore all images with a variant's settings; compiled programs are warm when timed."""
        upscaler = self._with_eta(variant.eta)
        options = {} if variant.settings is None else {**PUBLISHED, **variant.settings}
        settings = Settings(**options, batch_size=self._batch)
        images = [(i, pair.lr) for i, pair in enumerate(self.pairs)]
        program = f"{variant.eta} {settings.color_fix}"
        if program not in self._warm:
            warm = dataclasses.replace(settings, steps=1)
            list(upscaler.stream(images[: self._batch], warm))
            self._warm.add(program)
        seconds = []
        for _ in range(variant.repeats):
            results = dict(upscaler.stream(images, settings))
            for result in results.values():
                if isinstance(result, UserError):
                    raise result
            seconds.append(statistics.fmean(r.seconds for r in results.values()))
        pictures = [results[i].image for i, _ in images]
        return self._scored(variant, pictures, min(seconds))

    @functools.cached_property
    def shown(self) -> int:
        """Index of the pair that figures show: the one of most contrast."""
        return max(range(len(self.pairs)), key=lambda i: float(self.pairs[i].hr.std()))

    @functools.cached_property
    def references(self) -> list[Measured]:
        """What the method has to beat: bicubic enlargement, and the pre-restored images."""
        bicubic = [resample(p.lr, *p.hr.shape[:2]) for p in self.pairs]
        images = [(i, pair.lr) for i, pair in enumerate(self.pairs)]
        settings = Settings(**{**PUBLISHED, "steps": 1}, batch_size=self._batch)
        results = dict(self.upscaler.stream(images, settings))
        pre = [results[i].pre_restored for i, _ in images]
        return [
            self._scored(Variant("bicubic"), bicubic),
            self._scored(Variant("pre-restored"), pre),
        ]

    def _scored(
        self, variant: Variant, pictures: list[np.ndarray], seconds: float | None = None
    ) -> Measured:
        pairs = zip(pictures, self.pairs, strict=True)
        scores = [score(picture, pair.hr, self.names) for picture, pair in pairs]
        return Measured(variant, pictures, scores, seconds)


def _usable_metrics(pairs: list[Pair]) -> tuple[list[str], dict[str, str]]:
    """Names of metrics these images can have, and why others cannot."""
    usable, left_out = [], {}
    smallest = min(pairs, key=lambda pair: min(pair.hr.shape[:2])).hr
    for name in NAMES:
        try:
            # Any other picture than the reference itself, which would be infinitely good.
            score(255 - smallest, smallest, [name])
        except UserError as error:
            left_out[name] = str(error)
        else:
            usable.append(name)
    if not usable:
        raise UserError(f"crops of {UPSCALE}x: too small to measure; give --data larger images")
    return usable, left_out
