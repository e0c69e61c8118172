"""Training runs: data, optimizer, layout on devices, and what every stage has in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, WrapValidator

from dossr_jax.config.base import ConfigError, configuration, from_json
from dossr_jax.config.model import Count, DoSSRConfig, ModelConfig, read_model_config

Decay = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16"]


@configuration
class DataConfig:
    """What a training batch is: `batch` samples per step, over all devices and microbatches.

    `crop` is the side of an HR crop in pixels. A sample is cut from its image scaled by a factor
    drawn from `scale_range` (never below the crop), flipped and rotated where `augment`. Images
    without an LR partner are degraded on the device by one of `presets`, drawn uniformly.
    `hold_out`: one image in this many, chosen by a hash of its name, is for validation.
    """

    crop: Count = 512
    batch: Count = 16
    presets: Annotated[tuple[str, ...], Field(min_length=1)] = ("realesrgan",)
    scale_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    augment: bool = True
    hold_out: Count = 20
    workers: NonNegativeInt = 1
    prefetch: NonNegativeInt = 4

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if low > high:
            raise ConfigError(f"scale_range {[low, high]}: give the smaller factor first")


@configuration
class OptimizerConfig:
    """AdamW after clipping; the rate warms up, then follows a cosine to zero or stays constant.

    Gradients of a batch are accumulated over `microbatches`. `ema_decay` 0 keeps no EMA weights.
    """

    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: NonNegativeInt = 50
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 1.0
    microbatches: Count = 1
    ema_decay: Decay = 0.999


@configuration
class ParallelConfig:
    """How a run is laid out on devices, and its precision.

    Parameters and optimizer state are sharded over `fsdp` devices, batches over all; the number
    of devices is a multiple of it. Learning parameters are kept in float32, frozen ones in
    `frozen_dtype`; `dtype` is that of the arithmetic. `remat`: what the backward pass recomputes:
    nothing, all but matrix products ("dots"), or everything inside a stage ("full").
    """

    fsdp: Count = 1
    dtype: Dtype = "float32"
    frozen_dtype: Dtype = "float32"
    remat: Literal["none", "dots", "full"] = "none"


@configuration
class StageConfig:
    """Base of the stages' configurations (dossr_jax.training.stages). A subclass has a `name`.

    Subclasses register themselves by name, so that a stored run finds its stage.
    """

    known: ClassVar[dict[str, type[StageConfig]]] = {}
    name: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(name := cls.__dict__.get("name"), str):
            StageConfig.known[name] = cls

    def check(self, config: TrainConfig) -> None:
        """Refuse a run whose common settings do not fit the stage.

        Raises:
          ConfigError: naming field, value and remedy.
        """


def _read_stage(value: Any, handler: Callable[[Any], Any]) -> StageConfig:
    """A stage as it is, or from the mapping that :func:`to_json` wrote, by its name."""
    if not isinstance(value, Mapping):
        return handler(value)
    name = value.get("name")
    if name not in StageConfig.known:
        known = ", ".join(sorted(StageConfig.known))
        raise ConfigError(f"name {json.dumps(name)}: unknown stage; there are {known}")
    return from_json(StageConfig.known[name], json.dumps(dict(value)))


def _read_model(value: Any, handler: Callable[[Any], Any]) -> ModelConfig:
    """A model of any system as it is, or from the mapping that :func:`to_json` wrote."""
    if isinstance(value, Mapping):
        return read_model_config(json.dumps(dict(value)))
    if not isinstance(value, ModelConfig):
        raise ConfigError(f"{value!r}: must be the configuration of a model")
    return handler(value)


@configuration
class TrainConfig:
    """One training run of one stage.

    `save_every`, `validate_every` and `log_every` count steps, 0 is never; `keep` is the number
    of checkpoints kept.
    """

    stage: Annotated[StageConfig, WrapValidator(_read_stage)]
    # Of any system that the stage trains: stages check it.
    model: Annotated[Any, WrapValidator(_read_model)] = DoSSRConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: NonNegativeInt = 50_000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every: NonNegativeInt = 1000
    keep: Count = 3
    validate_every: NonNegativeInt = 1000
    log_every: Count = 20

    def __post_init__(self) -> None:
        parts = self.optimizer.microbatches
        unit = self.model.crop_multiple
        if self.data.batch % parts:
            raise ConfigError(
                f"optimizer.microbatches {parts}: must divide data.batch {self.data.batch}"
            )
        if self.data.crop % unit:
            raise ConfigError(
                f"data.crop {self.data.crop}: must be a multiple of {unit}, as the networks take it"
            )
        self.stage.check(self)
