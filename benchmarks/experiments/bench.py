"""The bench: a model and pairs of images, on which variants of settings are measured."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dossr_jax import Upscaler
from dossr_jax.errors import UserError
from dossr_jax.evaluate import score
from dossr_jax.image_io import resample
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
    `noise_trained` takes the model whose ControlNet was trained from noise. `system` takes another
    system by name, whose own sampler is changed by `settings` alone.
    """

    label: str
    settings: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    series: str = ""
    x: float | None = None
    eta: str | None = None
    repeats: int = 1
    noise_trained: bool = False
    system: str = ""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Pictures of a variant (uint8, one per pair) and metrics, by source; seconds per image."""

    variant: Variant
    pictures: dict[str, list[np.ndarray]]
    scores: dict[str, list[dict[str, float]]]
    seconds: float | None = None

    def mean(self, name: str, source: str) -> float:
        """Mean of a metric over the images of a source."""
        return statistics.fmean(scores[name] for scores in self.scores[source])

    def as_row(self, names: Sequence[str]) -> dict[str, Any]:
        """All but the pictures, for a JSON file."""
        return {
            **dataclasses.asdict(self.variant),
            "seconds_per_image": self.seconds,
            "mean": {s: {name: self.mean(name, s) for name in names} for s in self.scores},
            "images": self.scores,
        }


class Bench:
    """A model, its pairs and the metrics that can be taken on them.

    Attributes:
      sources: of the pairs' LR images, in their order.
      names: metrics to be taken. left_out: others, and why they cannot.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        pairs: Sequence[Pair],
        noise_trained: Upscaler | None = None,
        systems: Mapping[str, Callable[[], Upscaler]] | None = None,
    ):
        """Put them together; `systems` loads other systems by name, one in memory at a time."""
        self.upscaler, self._noise_trained = upscaler, noise_trained
        self._systems = systems or {}
        self._other: tuple[str, Upscaler] | None = None
        self._pairs = list(pairs)
        self.sources = list(dict.fromkeys(pair.source for pair in pairs))
        self.names, self.left_out = _usable_metrics(self._pairs)
        # The largest power of two that divides the number of images: no place runs empty.
        self._batch = min(8, len(pairs) & -len(pairs))
        self._warm: set[Any] = set()
        self._known: dict[Any, Measured] = {}

    def pairs_of(self, source: str) -> list[Pair]:
        """The pairs of a source, the same HR crops in the same order for each."""
        return [pair for pair in self._pairs if pair.source == source]

    @functools.cache  # noqa: B019 - a bench lives as long as the program
    def _upscaler(self, noise_trained: bool, eta: str | None) -> Upscaler:
        upscaler = self._noise_trained if noise_trained else self.upscaler
        if eta is None:
            return upscaler
        model = upscaler.model
        process = dataclasses.replace(model.config.process, eta=eta)
        model.config = dataclasses.replace(model.config, process=process)
        return Upscaler(model)

    def _system(self, name: str) -> Upscaler:
        """Another system."""
        if self._other is None or self._other[0] != name:
            self._other = None  # let go first
            self._other = name, self._systems[name]()
        return self._other[1]

    def measure(self, variant: Variant) -> Measured:
        """Restore all images with a variant's settings; compiled programs are warm when timed.

        Settings that were measured before, under whatever label, are run again only for their time.
        """
        place = variant.noise_trained, variant.eta, variant.system
        if variant.system:
            upscaler, options = self._system(variant.system), variant.settings or {}
            fewest = options
        else:
            upscaler = self._upscaler(variant.noise_trained, variant.eta)
            options = {} if variant.settings is None else {**PUBLISHED, **variant.settings}
            fewest = options | {"steps": 1}
        settings = upscaler.settings(**options, batch_size=self._batch)
        known = self._known.get((place, settings))
        if known is not None and variant.repeats == 1:
            return dataclasses.replace(known, variant=variant)
        images = list(enumerate(pair.lr for pair in self._pairs))
        program = place, settings.sampler.color_fix
        if program not in self._warm:
            warm = upscaler.settings(**fewest, batch_size=self._batch)
            list(upscaler.stream(images[: self._batch], warm))
            self._warm.add(program)
        seconds = []
        for _ in range(variant.repeats):
            results = dict(upscaler.stream(images, settings))
            for result in results.values():
                if isinstance(result, UserError):
                    raise result
            seconds.append(statistics.fmean(r.seconds for r in results.values()))
        if known is None:
            known = self._scored(variant, [results[i].image for i, _ in images])
        known = dataclasses.replace(known, variant=variant, seconds=min(seconds))
        self._known[place, settings] = known
        return known

    @functools.cached_property
    def shown(self) -> int:
        """Which pair of every source figures show: the one of most contrast."""
        pairs = self.pairs_of(self.sources[0])
        return max(range(len(pairs)), key=lambda i: float(pairs[i].hr.std()))

    @functools.cached_property
    def references(self) -> list[Measured]:
        """What the method has to beat: bicubic enlargement, and the pre-restored images."""
        bicubic = [resample(p.lr, *p.hr.shape[:2]) for p in self._pairs]
        images = list(enumerate(pair.lr for pair in self._pairs))
        settings = self.upscaler.settings(**{**PUBLISHED, "steps": 1}, batch_size=self._batch)
        results = dict(self.upscaler.stream(images, settings, stages=True))
        pre = [results[i].pre_restored for i, _ in images]
        return [
            self._scored(Variant("bicubic"), bicubic),
            self._scored(Variant("pre-restored"), pre),
        ]

    def _scored(self, variant: Variant, pictures: list[np.ndarray]) -> Measured:
        by_source: dict[str, list[np.ndarray]] = {source: [] for source in self.sources}
        scores: dict[str, list[dict[str, float]]] = {source: [] for source in self.sources}
        for picture, pair in zip(pictures, self._pairs, strict=True):
            by_source[pair.source].append(picture)
            scores[pair.source].append(score(picture, pair.hr, self.names))
        return Measured(variant, by_source, scores)


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
