"""What is evaluated: ways from an LR image to a restored one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.errors import UserError
from dossr_jax.evaluate import bicubic
from dossr_jax.image import pad_to, pixels_to_uint8
from dossr_jax.pipeline import Settings, Upscaler

# Steps of the two samplers that start from noise.
STEPS_FROM_NOISE = (5, 15, 50)
_FROM_NOISE = {"ddpm": "sde", "ddim": "ode"}
BASELINES = (
    "bicubic",
    "pre-restored",
    "unrefined",
    "autoencoder",
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
      of_reference: whether it is given the ground truth in place of LR images, as a bound.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def parameters(self) -> int: ...

    @property
    def evaluations(self) -> int: ...

    @property
    def of_reference(self) -> bool: ...

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """Restore images uint8 (h, w, 3) as they come; one that fails stops no other."""
        ...


@dataclasses.dataclass(frozen=True)
class Bicubic:
    """MATLAB's bicubic enlargement."""

    scale: float
    name: str = "bicubic"
    description: str = "MATLAB's imresize of 8-bit images, a = -0.5, edges mirrored"
    parameters: int = 0
    evaluations: int = 0
    of_reference: bool = False

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
    of_reference: bool = False

    @property
    def parameters(self) -> int:
        """Of the networks that run; a text tower, if any, does not."""
        counts = self.upscaler.parameters
        if not self.settings.diffuse:
            return counts["rrdb"]
        idle = {"text"} if self.settings.refine else {"text", "refiner"}
        return sum(count for name, count in counts.items() if name not in idle)

    @property
    def evaluations(self) -> int:
        """A step is one evaluation, two with guidance."""
        settings = self.settings
        if not settings.diffuse:
            return 0
        return settings.sampler.steps * (1 if settings.cfg_scale == 1 else 2)

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """See :class:`Candidate`."""
        for name, result in self.upscaler.stream(images, self.settings):
            yield name, result if isinstance(result, UserError) else result.image


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The ground truth through a model's autoencoder: what its latents can carry at best."""

    upscaler: Upscaler
    name: str = "autoencoder"
    description: str = "the ground truth, coded and decoded by the model's autoencoder"
    evaluations: int = 0
    of_reference: bool = True

    @property
    def parameters(self) -> int:
        """Of the autoencoder."""
        return self.upscaler.parameters["vae"]

    def restore(self, images: Iterable[Named]) -> Iterator[tuple[str, np.ndarray | UserError]]:
        """See :class:`Candidate`. Whole images; sides are continued to what the networks need."""
        model = nnx.split(self.upscaler.model)
        unit = self.upscaler.config.vae.downscale
        for name, image in images:
            height, width = image.shape[:2]
            padded = pad_to(image, *(-(-side // unit) * unit for side in (height, width)))
            yield name, np.asarray(_round_trip(*model, padded[None]))[0, :height, :width]


@functools.partial(jax.jit, static_argnames="graphdef")
def _round_trip(graphdef: nnx.GraphDef, state: nnx.State, image: jax.Array) -> jax.Array:
    """Images uint8 (b, h, w, 3) coded by the posterior's mode and decoded."""
    model = nnx.merge(graphdef, state)
    moments, _ = model.encode(image.astype(jnp.float32) / 255)
    return pixels_to_uint8(model.decode(model.latents(moments.astype(jnp.float32))))


def make_model(upscaler: Upscaler, fields: Mapping[str, Any], name: str) -> Restorer:
    """The model itself, with its own settings but for those that the user gives."""
    settings = upscaler.settings(**fields)
    sampler = settings.sampler
    words = [
        f"{sampler.steps} steps of {sampler.solver}, order {sampler.order}, grid {sampler.grid}",
        f"start {sampler.start}",
        "final denoising" if sampler.final_denoise else "no final denoising",
        f"fidelity {sampler.fidelity:g}, cfg {settings.cfg_scale:g}, "
        f"strength {settings.strength:g}",
        f"colour fix {sampler.color_fix}, seed {settings.seed}",
    ]
    if settings.refine and upscaler.config.refiner:
        words.append(f"refined, detail {sampler.detail:g}")
    return Restorer(upscaler, settings, name, ", ".join(words))


def check_baselines(names: Iterable[str]) -> None:
    """Raise UserError where a name is no baseline."""
    for name in names:
        if name not in BASELINES and not name.startswith(RRDB_PREFIX):
            known = ", ".join((*BASELINES, f"{RRDB_PREFIX}FILE", f"{RRDB_PREFIX}realesrgan"))
            raise UserError(f"no baseline {name!r}; choose from {known}")


def make_baseline(
    name: str,
    fields: Mapping[str, Any],
    upscaler: Callable[[], Upscaler],
    with_rrdb: Callable[[str], Upscaler],
) -> Candidate:
    """The baseline of a name that :func:`check_baselines` lets pass.

    Args:
      fields: settings of the model; baselines depart from them as little as they have to.
      upscaler: gives the model, loaded when first asked for.
      with_rrdb: the same with another pre-restorer, a file or "realesrgan".

    Raises:
      UserError: what is wrong with a file of weights.
    """
    if name == "bicubic":
        return Bicubic(fields.get("scale", 4.0))
    if name == "pre-restored":
        alone = upscaler().settings(**fields, diffuse=False)
        return Restorer(upscaler(), alone, name, "the model's pre-restorer alone")
    if name == "unrefined":
        return make_model(upscaler(), {**fields, "refine": False}, name)
    if name == "autoencoder":
        return Autoencoder(upscaler())
    if name.startswith(RRDB_PREFIX):
        source = name.removeprefix(RRDB_PREFIX)
        model = with_rrdb(source)
        alone = model.settings(**fields, diffuse=False)
        return Restorer(model, alone, name, f"RRDBNet of {source} alone")
    sampler, steps = name.rsplit("-", 1)
    changes = {
        "start": "noise",
        "solver": _FROM_NOISE[sampler],
        "order": 1,
        "steps": int(steps),
        "grid": "uniform",
        "final_denoise": True,
        "fidelity": 0.0,
    }
    return make_model(upscaler(), {**fields, **changes}, name)
