"""How to restore: a sampler, and what the user wants of the picture; checked when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from dossr_jax.config import SAMPLERS, UPSCALE, ConfigError, SamplerConfig, configuration
from dossr_jax.errors import UserError

if TYPE_CHECKING:
    from dossr_jax.systems import System

DEFAULT_TILE = 512
# Models that come with the package: files of its own, and names of systems.rrdb.PACKAGED.
BUILT_IN = {"dossr-mini": "dossr-mini.safetensors"}
MODELS = (*BUILT_IN, "realesrgan", "realesrgan-anime")
DEFAULT_MODEL = MODELS[0]
DTYPE_NAMES = ("float32", "bfloat16")
_MAX_SCALE = 2**16
# Images of 512 x 512 pixels that keep an accelerator busy.
BUSY = 16
_Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's, sequences as tuples."""
    return tuple(np.asarray(value).tolist()) if np.ndim(value) else value


@configuration
class Settings:
    """How to restore images. :func:`make_settings` starts from a model's own sampler.

    `seed` is one for all images, or a sequence with one per image.
    """

    sampler: SamplerConfig
    scale: Annotated[
        float, Field(gt=0, le=_MAX_SCALE, description="enlargement, any positive number")
    ] = float(UPSCALE)
    seed: Annotated[
        _Seed | tuple[_Seed, ...], BeforeValidator(_plain), Field(description="random seed")
    ] = 0
    prompt: Annotated[
        str | None, Field(description="text that describes the result (default: stored)")
    ] = None
    negative_prompt: Annotated[
        str | None, Field(description="text to steer away from, with cfg_scale (default: stored)")
    ] = None
    strength: Annotated[
        float, Field(description="factor on the ControlNet's residuals, 1 as trained")
    ] = 1.0
    pixel_scale: Annotated[
        float, Field(description="PiSA-SR: how much of the degradation is removed, 1 as trained")
    ] = 1.0
    semantic_scale: Annotated[
        float, Field(description="PiSA-SR: how much detail is added, 1 as trained")
    ] = 1.0
    batch_size: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)],
        Field(
            description="images, or tiles of large images, that run together; auto: what keeps the "
            "device busy, on a CPU 512 x 512 pixels of results. Where memory is short it is halved"
        ),
    ] = "auto"
    diffuse: Annotated[
        bool, Field(description="run the diffusion model; without it, only the pre-restorer")
    ] = True
    truncate: Annotated[
        bool, Field(description="8-bit output by truncation, as the PyTorch release does")
    ] = False

    @property
    def images_at_a_time(self) -> int:
        """For those who gather images: batch_size, or where it is open what keeps a GPU busy."""
        return BUSY if self.batch_size == "auto" else self.batch_size

    def seed_of(self, index: int) -> int:
        """Seed of the image at a position in the input.

        Raises:
          UserError: there are fewer seeds than images.
        """
        if isinstance(self.seed, int):
            return self.seed
        if index >= len(self.seed):
            raise UserError(
                f"{len(self.seed)} seeds for more images; give one seed, or one per image"
            )
        return self.seed[index]


def make_settings(
    stored: SamplerConfig, *, sampler: SamplerConfig | str | None = None, **fields: Any
) -> Settings:
    """Settings from fields of :class:`Settings` and of its :class:`SamplerConfig`, mixed.

    Args:
      stored: the model's sampler; it has what the fields leave open.
      sampler: another one in its place, or the name of one in config.SAMPLERS.
      **fields: None is the same as not given.

    Raises:
      ConfigError: an unknown field or a value that it cannot have, in one line.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ConfigError(f"sampler {sampler!r}: must be one of {', '.join(SAMPLERS)}")
        stored = dataclasses.replace(stored, **SAMPLERS[sampler])
    elif sampler is not None:
        stored = sampler
    given = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in fields.items()
        if value is not None
    }
    of_sampler = {field.name for field in dataclasses.fields(SamplerConfig)}
    changes = {name: given.pop(name) for name in of_sampler & given.keys()}
    return Settings(sampler=dataclasses.replace(stored, **changes), **given)


def check_settings(system: System, fields: Mapping[str, Any]) -> None:
    """Refuse fields that a system does not read, where they ask for something.

    Raises:
      ConfigError: naming the field, and the systems that do read it.
    """
    from dossr_jax.systems import COMMON_SETTINGS, SYSTEMS  # here: settings need no networks

    known = COMMON_SETTINGS | system.settings
    asked = {name for name, value in fields.items() if value is not None}
    if not system.samples and fields.get("diffuse") is False:
        asked -= {"diffuse"}  # it has no diffusion to leave out
    for name in sorted(asked - known):
        readers = ", ".join(other.title for other in SYSTEMS if name in other.settings)
        raise ConfigError(
            f"{name} {fields[name]}: {system.title} does not read it, only {readers}; leave it out"
        )
