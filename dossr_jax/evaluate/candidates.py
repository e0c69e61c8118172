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

from dossr_jax.config import LatentConfig, ModelConfig
from dossr_jax.errors import UserError
from dossr_jax.evaluate import bicubic, classical
from dossr_jax.image import pad_to, pixels_to_levels
from dossr_jax.pipeline import Settings, Upscaler
from dossr_jax.pipeline.buckets import round_up
from dossr_jax.pipeline.settings import check_settings, make_settings
from dossr_jax.systems import System, system_of

_FROM_NOISE = {"ddpm": "sde", "ddim": "ode"}
# Those that no model runs in.
WITHOUT_MODEL = ("bicubic", *classical.METHODS)
BASELINES = (
    *WITHOUT_MODEL,
    "pre-restored",
    "autoencoder",
    *(f"{name}-{steps}" for name in _FROM_NOISE for steps in (5, 15, 50)),
)
_RRDB_PREFIX = "rrdb:"

# Images uint8 (h, w, 3), or (h, w, 4): the fourth channel is 0 where pixels are missing, else 255.
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
    alone = None if settings.diffuse else system.pre_restorer
    used = counts.keys() - {"text"} if alone is None else {alone}
    return Candidate(
        name,
        description or _describe(system, settings),
        restore,
        parameters=sum(counts[network] for network in used),
        evaluations=system.evaluations(settings),
    )


def _describe(system: System, settings: Settings) -> str:
    """A system and what it reads of the settings, in a line."""
    if not system.samples:
        return f"{system.title}, one pass"
    if not settings.diffuse:
        return "the pre-restorer alone"
    sampler = settings.sampler
    words = {
        "steps": f"{sampler.steps} steps of {sampler.solver}",
        "order": f"order {sampler.order}",
        "grid": f"grid {sampler.grid}",
        "start": f"start {sampler.start}",
        "final_denoise": "final denoising" if sampler.final_denoise else "no final denoising",
        "fidelity": f"fidelity {sampler.fidelity:g}",
        "cfg_scale": f"cfg {sampler.cfg_scale:g}",
        "strength": f"strength {settings.strength:g}",
        "pixel_scale": f"pixel scale {settings.pixel_scale:g}",
        "semantic_scale": f"semantic scale {settings.semantic_scale:g}",
        "color_fix": f"colour fix {sampler.color_fix}",
        "seed": f"seed {settings.seed}",
    }
    return f"{system.title}: " + ", ".join(
        w for name, w in words.items() if name in system.settings
    )


def check_model(
    config: ModelConfig,
    fields: Mapping[str, Any],
    *,
    baselines: Iterable[str] = (),
    preprocessor: str | None = None,
) -> None:
    """Refuse what a model does not read or have, before its weights are read.

    Args:
      fields: settings that are asked for.
      baselines: those that run in the model. preprocessor: another pre-restorer for it.

    Raises:
      UserError: in one line, what to leave out.
    """
    system = system_of(config)
    lacking = f"{system.title} has no pre-restorer; leave it out"
    if preprocessor is not None and system.pre_restorer is None:
        raise UserError(f"--preprocessor {preprocessor}: {lacking}")
    make_settings(system.sampler(config), **fields)
    check_settings(system, fields)
    for name in baselines:
        if name == "autoencoder" and not isinstance(config, LatentConfig):
            raise UserError(f"baseline {name}: {system.title} has no VAE; leave it out")
        if _is_pre_restorer(name) and system.pre_restorer is None:
            raise UserError(f"baseline {name}: {lacking}")
        if name.startswith(tuple(_FROM_NOISE)) and "start" not in system.settings:
            raise UserError(
                f"baseline {name}: {system.title} cannot be made to start from noise; leave it out"
            )


def _is_pre_restorer(baseline: str) -> bool:
    return baseline == "pre-restored" or baseline.startswith(_RRDB_PREFIX)


def check_baselines(names: Iterable[str]) -> None:
    """Raise UserError where a name is no baseline."""
    for name in names:
        if name not in BASELINES and not name.startswith(_RRDB_PREFIX):
            known = ", ".join((*BASELINES, f"{_RRDB_PREFIX}FILE", f"{_RRDB_PREFIX}realesrgan"))
            raise UserError(f"no baseline {name!r}; choose from {known}")
        if name in classical.METHODS:
            classical.check(name)


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
    if name in classical.METHODS:
        return _make_classical(name)
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
            yield name, bicubic.resize_uint8(image[..., :3], scale)

    about = "MATLAB's imresize of 8-bit images, a = -0.5, edges mirrored"
    return Candidate("bicubic", about, restore)


def _make_classical(name: str) -> Candidate:
    method = classical.METHODS[name]

    def restore(images: Iterable[Named]) -> Iterator[Outcome]:
        for image_name, image in images:
            yield image_name, method(image)

    return Candidate(name, (method.__doc__ or "").partition(";")[0], restore)


def _make_autoencoder(upscaler: Upscaler) -> Candidate:
    """The ground truth through a model's autoencoder: what its latents can carry at best."""

    def restore(images: Iterable[Named]) -> Iterator[Outcome]:
        """Restore whole images, padded to what the networks need."""
        assert isinstance(upscaler.config, LatentConfig)
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
