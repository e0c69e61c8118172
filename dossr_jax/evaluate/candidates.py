"""What is evaluated: ways from an LR image to a restored one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from dossr_jax.errors import UserError
from dossr_jax.evaluate import bicubic
from dossr_jax.pipeline import Settings, Upscaler

# Steps of the two samplers that start from noise.
STEPS_FROM_NOISE = (5, 15, 50)
_FROM_NOISE = {"ddpm": "sde", "ddim": "ode"}
BASELINES = (
    "bicubic",
    "pre-restored",
    *(f"{name}-{steps}" for name in _FROM_NOISE for steps in STEPS_FROM_NOISE),
)
RRDB_PREFIX = "rrdb:"

Named = tuple[str, np.ndarray]


class Candidate(Protocol):
    """A way to restore.

    Attributes:
      name, description: as in the report.
      parameters: numbers in its networks.
      evaluations: of the denoising network, for an image or for each of its tiles.
    """

    name: str
    description: str
    parameters: int
    evaluations: int

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """Restore images uint8 (h, w, 3) as they come; one that fails stops no other."""


@dataclasses.dataclass(frozen=True)
class Bicubic:
    """MATLAB's bicubic enlargement."""

    scale: float
    name: str = "bicubic"
    description: str = "MATLAB's imresize of 8-bit images, a = -0.5, edges mirrored"
    parameters: int = 0
    evaluations: int = 0

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """See :class:`Candidate`."""
        for name, image in images:
            yield name, bicubic.resize_uint8(image, self.scale)


@dataclasses.dataclass(frozen=True)
class Restorer:
    """A model with settings."""

    upscaler: Upscaler
    settings: Settings
    name: str
    description: str

    @property
    def parameters(self) -> int:
        """Of the networks that run; a text tower, if any, does not."""
        counts = self.upscaler.parameters
        if not self.settings.diffuse:
            return counts["rrdb"]
        return sum(count for name, count in counts.items() if name != "text")

    @property
    def evaluations(self) -> int:
        """A step is one evaluation, two with guidance."""
        settings = self.settings.completed(self.upscaler.config.sampler)
        if not settings.diffuse:
            return 0
        return settings.steps * (1 if settings.cfg_scale == 1 else 2)

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """See :class:`Candidate`."""
        for name, result in self.upscaler.stream(images, self.settings):
            yield name, result if isinstance(result, UserError) else result.image


def make_model(upscaler: Upscaler, settings: Settings, name: str) -> Restorer:
    """The model itself, with the settings that it or the user gives it."""
    full = settings.completed(upscaler.config.sampler)
    words = [
        f"{full.steps} steps of {full.solver}, order {full.order}, grid {full.grid}",
        f"start {full.start}",
        "final denoising" if full.final_denoise else "no final denoising",
        f"fidelity {full.fidelity:g}, cfg {full.cfg_scale:g}, strength {full.strength:g}",
        f"colour fix {full.color_fix}, seed {full.seed}",
    ]
    return Restorer(upscaler, settings, name, ", ".join(words))


def check_baselines(names: Iterable[str]) -> None:
    """Raise UserError where a name is no baseline."""
    for name in names:
        if name not in BASELINES and not name.startswith(RRDB_PREFIX):
            known = ", ".join((*BASELINES, f"{RRDB_PREFIX}FILE", f"{RRDB_PREFIX}realesrgan"))
            raise UserError(f"no baseline {name!r}; choose from {known}")


def make_baseline(
    name: str,
    settings: Settings,
    upscaler: Callable[[], Upscaler],
    with_rrdb: Callable[[str], Upscaler],
) -> Candidate:
    """The baseline of a name that :func:`check_baselines` lets pass.

    Args:
      settings: of the model; baselines depart from them as little as they have to.
      upscaler: gives the model, loaded when first asked for.
      with_rrdb: the same with another pre-restorer, a file or "realesrgan".

    Raises:
      UserError: what is wrong with a file of weights.
    """
    if name == "bicubic":
        return Bicubic(settings.scale)
    if name == "pre-restored":
        alone = dataclasses.replace(settings, diffuse=False)
        return Restorer(upscaler(), alone, name, "the model's pre-restorer alone")
    if name.startswith(RRDB_PREFIX):
        source = name.removeprefix(RRDB_PREFIX)
        alone = dataclasses.replace(settings, diffuse=False)
        return Restorer(with_rrdb(source), alone, name, f"RRDBNet of {source} alone")
    sampler, steps = name.rsplit("-", 1)
    changed = dataclasses.replace(
        settings,
        start="noise",
        solver=_FROM_NOISE[sampler],
        order=1,
        steps=int(steps),
        grid="uniform",
        final_denoise=True,
        fidelity=0.0,
    )
    return make_model(upscaler(), changed, name)
