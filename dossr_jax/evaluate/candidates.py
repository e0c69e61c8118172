"""What is evaluated: ways from an LR image to a restored one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax.config import LatentConfig
from dossr_jax.errors import UserError
from dossr_jax.evaluate import bicubic
from dossr_jax.image import pad_to, pixels_to_levels
from dossr_jax.pipeline import Settings, Upscaler
from dossr_jax.pipeline.buckets import round_up
from dossr_jax.systems import System

_FROM_NOISE = {"ddpm": "sde", "ddim": "ode"}
BASELINES = (
    "bicubic",
    "pre-restored",
    "autoencoder",
    *(f"{name}-{steps}" for name in _FROM_NOISE for steps in (5, 15, 50)),
)
_RRDB_PREFIX = "rrdb:"

Named = tuple[str, np.ndarray]
Outcome = tuple[str, np.ndarray | UserError]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to restore.

    Attributes:
      name, description: as in the report.
      restore: restores images uint8 (h, w, 3) as they come; one that fails stops no other.
      parameters: parameter count of the networks that run.
      evaluations: of the denoising network, per image or per tile of it.
      of_reference: whether it is given the ground truth in place of LR images, as a bound.
    """

    name: str
    description: str
    restore: Callable[[Iterable[Named]], Iterator[Outcome]]
    parameters: int = 0
    evaluations: int = 0
    of_reference: bool = False


def make_model(
    upscaler: Upscaler, fields: Mapping[str, Any], name: str, description: str = ""
) -> Candidate:
    """A model with its own settings, changed by `fields`; by default these are its description."""
    settings = upscaler.settings(**fields)

    def restore(images: Iterable[Named]) -> Iterator[Outcome]:
        for image, result in upscaler.stream(images, settings):
            yield image, result if isinstance(result, UserError) else result.image

    counts = upscaler.parameters
    system = upscaler.system
    used = counts.keys() - {"text"} if settings.diffuse else {system.pre_restorer}
    # Guidance evaluates the network twice per step.
    evaluations = settings.sampler.steps * (2 if system.guided(settings) else 1)
    return Candidate(
        name,
        description or _describe(system, settings),
        restore,
        parameters=sum(counts[network] for network in used),
        evaluations=evaluations if settings.diffuse and system.samples else 0,
    )


def _describe(system: System, settings: Settings) -> str:
    if not system.samples:
        return f"{system.title}, one pass"
    if not settings.diffuse:
        return "the pre-restorer alone"
    sampler = settings.sampler
    words = [
        f"{sampler.steps} steps of {sampler.solver}, order {sampler.order}, grid {sampler.grid}",
        f"start {sampler.start}",
        "final denoising" if sampler.final_denoise else "no final denoising",
        f"fidelity {sampler.fidelity:g}, cfg {settings.sampler.cfg_scale:g}, "
        f"strength {settings.strength:g}",
        f"colour fix {sampler.color_fix}, seed {settings.seed}",
    ]
    return ", ".join(words)


def check_baselines(names: Iterable[str]) -> None:
    """Raise UserError where a name is no baseline."""
    for name in names:
        if name not in BASELINES and not name.startswith(_RRDB_PREFIX):
            known = ", ".join((*BASELINES, f"{_RRDB_PREFIX}FILE", f"{_RRDB_PREFIX}realesrgan"))
            raise UserError(f"no baseline {name!r}; choose from {known}")


def make_baseline(name: str, fields: Mapping[str, Any], load: Callable[..., Upscaler]) -> Candidate:
    """The baseline of a name that :func:`check_baselines` accepts.

    Args:
      fields: settings of the model; baselines change as few of them as they can.
      load: loads the model; with `preprocessor`, a file or "realesrgan", another pre-restorer.

    Raises:
      UserError: what is wrong with a file of weights.
    """
    if name == "bicubic":
        return _make_bicubic(fields.get("scale", 4.0))
    if name == "pre-restored":
        alone = {**fields, "diffuse": False}
        return make_model(load(), alone, name, "the model's pre-restorer alone")
    if name == "autoencoder":
        return _make_autoencoder(load())
    if name.startswith(_RRDB_PREFIX):
        source = name.removeprefix(_RRDB_PREFIX)
        alone = {**fields, "diffuse": False}
        return make_model(load(preprocessor=source), alone, name, f"RRDBNet of {source} alone")
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
    return make_model(load(), {**fields, **changes}, name)


def _make_bicubic(scale: float) -> Candidate:
    def restore(images: Iterable[Named]) -> Iterator[Outcome]:
        for name, image in images:
            yield name, bicubic.resize_uint8(image, scale)

    about = "MATLAB's imresize of 8-bit images, a = -0.5, edges mirrored"
    return Candidate("bicubic", about, restore)


def _make_autoencoder(upscaler: Upscaler) -> Candidate:
    """The ground truth through a model's autoencoder: what its latents can carry at best.

    Raises:
      UserError: the model's system has no VAE.
    """
    if not isinstance(upscaler.config, LatentConfig):
        raise UserError(f"baseline autoencoder: {upscaler.system.title} has no VAE; leave it out")

    def restore(images: Iterable[Named]) -> Iterator[Outcome]:
        """Restore whole images, padded to what the networks need."""
        model = nnx.split(upscaler.model)
        unit = upscaler.config.vae.downscale
        for name, image in images:
            height, width = image.shape[:2]
            padded = pad_to(image, round_up(height, unit), round_up(width, unit))
            yield name, np.asarray(_round_trip(*model, padded[None]))[0, :height, :width]

    return Candidate(
        "autoencoder",
        "the ground truth, coded and decoded by the model's autoencoder",
        restore,
        parameters=upscaler.parameters["vae"],
        of_reference=True,
    )


@functools.partial(jax.jit, static_argnames="graphdef")
def _round_trip(graphdef: nnx.GraphDef, state: nnx.State, image: jax.Array) -> jax.Array:
    """Encode images uint8 (b, h, w, 3) by the posterior's mode and decode them."""
    model = nnx.merge(graphdef, state)
    moments, _ = model.encode(image.astype(jnp.float32) / 255)
    return pixels_to_levels(model.decode(model.latents(moments.astype(jnp.float32))))
