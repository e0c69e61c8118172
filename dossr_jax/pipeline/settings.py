"""How to restore: every knob of the pipeline, checked when it is set."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from dossr_jax.config import SCHEMES, SamplerConfig
from dossr_jax.diffusion.schedule import Grid
from dossr_jax.diffusion.solver import Kind, Order, Start
from dossr_jax.errors import UserError
from dossr_jax.image import ColorFix

Scheme = Literal["published", "span"]  # the names in SCHEMES
MAX_STEPS = 50
_MAX_SEED = 2**32 - 1
_MAX_SCALE = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to restore. None means as stored with the weights: as published, if converted.

    Attributes:
      scale: factor of enlargement, > 0; restored at 4 and resampled to round(scale x size).
      steps: network evaluations, 1 to 50. order: of the solver, 1 to 3.
      scheme: a sampler by name: order, solver, grid and final_denoise of "published", or of
        "span", which is closer to the model's own distribution in few steps (docs/method.md).
        Those of the four that are given too go before it.
      solver: "sde" (published), "ode" (probability flow, deterministic after the start) or "span"
        (the same flow, predictions fitted in another coordinate).
      start: "lr" (published) or "noise", plain diffusion: with it order-1 "sde" is spaced DDPM
        and order-1 "ode" is DDIM. A model is trained for one of them.
      grid: times "uniform" in t (published), uniform in "log_lambda", or "jump" and "span", which
        spend few at high noise (docs/method.md).
      final_denoise: end at the last prediction of x0, not (as published) at t = 0 with its noise.
      seed: one seed from 0 to 2^32 - 1, or one an image.
      prompt, negative_prompt: of the wanted picture, and what to steer away from.
      cfg_scale: classifier-free guidance against the negative prompt, 1 is off.
      strength: factor on the ControlNet's residuals, 1 as trained.
      fidelity: 0 free, 1 keeps to the pre-restored image.
      detail: of a model with a refiner, factor on what diffusion changed: 0 the refiner's
        own picture, closest to the truth; 1 all of it, more natural.
      color_fix: how to keep to the pre-restored image's colours: "wavelet" (published) takes its
        low band; "residual" that too, and adds what diffusion changed to the pre-restored image, so
        that the autoencoder's own error cancels; "adain" takes mean and deviation; or "none".
      batch_size: images, or tiles of larger images, that run together.
      diffuse: False ends with the pre-restored image, for comparisons.
      refine: False leaves out the refiner of a model that has one: diffusion alone.
      truncate: 8-bit output by truncation, as the PyTorch release does, for comparisons.

    Raises:
      UserError: in one line, which of them cannot be and what it may be.
    """

    scale: float = 4.0
    steps: int | None = None
    scheme: Scheme | None = None
    order: Order | None = None
    solver: Kind | None = None
    start: Start | None = None
    grid: Grid | None = None
    final_denoise: bool | None = None
    seed: int | Sequence[int] = 0
    prompt: str | None = None
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    strength: float = 1.0
    fidelity: float | None = None
    detail: float | None = None
    color_fix: ColorFix | None = None
    batch_size: int = 1
    diffuse: bool = True
    refine: bool = True
    truncate: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            listed = choices(field.name)
            if listed:
                wanted, fine = f"one of {', '.join(map(str, listed))}", value in listed
            elif field.name in _NUMBERS:
                wanted, check = _NUMBERS[field.name]
                fine = check(value)
            else:
                continue
            if not fine:
                raise UserError(f"{field.name} {value!r} is not {wanted}")

    def completed(self, sampler: SamplerConfig) -> Settings:
        """These settings with what they leave open as the scheme, else `sampler`, has it."""
        stored = dataclasses.asdict(sampler) | SCHEMES.get(self.scheme, {})
        missing = {name: v for name, v in stored.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def seed_of(self, index: int) -> int:
        """Seed of the image at a position in the input.

        Raises:
          UserError: there are fewer seeds than images.
        """
        if np.ndim(self.seed) == 0:
            return int(self.seed)
        if index >= len(self.seed):
            raise UserError(f"{len(self.seed)} seeds for more images; give one seed, or one each")
        return int(self.seed[index])


@functools.cache
def choices(name: str) -> tuple[Any, ...]:
    """The values that the field `name` of :class:`Settings` may have, () where it is a range."""
    hint = typing.get_type_hints(Settings)[name]
    parts = (hint, *typing.get_args(hint))  # a Literal, alone or in a union with None
    listed = [typing.get_args(part) for part in parts if typing.get_origin(part) is Literal]
    return listed[0] if listed else ()


def _whole(value: Any, least: int, most: float) -> bool:
    return isinstance(value, Integral) and least <= value <= most


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


# Field -> what it has to be, in words and as a check.
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "scale": (
        f"a positive number up to {_MAX_SCALE}",
        lambda v: _finite(v) and 0 < v <= _MAX_SCALE,
    ),
    "steps": (f"a whole number from 1 to {MAX_STEPS}", lambda v: _whole(v, 1, MAX_STEPS)),
    "seed": (
        f"a whole number from 0 to {_MAX_SEED}, or one an image",
        lambda v: all(_whole(s, 0, _MAX_SEED) for s in ([v] if np.ndim(v) == 0 else v)),
    ),
    "cfg_scale": ("a finite number", _finite),
    "strength": ("a finite number", _finite),
    "fidelity": ("a number from 0 to 1", lambda v: _finite(v) and 0 <= v <= 1),
    "detail": ("a finite number", _finite),
    "batch_size": ("a whole number from 1", lambda v: _whole(v, 1, math.inf)),
}
