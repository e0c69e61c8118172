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
    """What a training batch is.

    A sample is a crop of an image. Images without an LR partner are degraded on the device.
    """

    crop: Count = Field(default=512, description="side of an HR crop in pixels")
    batch: Count = Field(
        default=16, description="samples per step, over all devices and microbatches"
    )
    presets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=("realesrgan",),
        description="degradations; one is drawn uniformly for every sample",
    )
    scale_range: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 1.0),
        description="an image is scaled by a factor drawn from it, never below the crop",
    )
    augment: bool = Field(default=True, description="flip and rotate crops at random")
    hold_out: Count = Field(
        default=20,
        description="one image in this many, chosen by a hash of its name, is for validation",
    )
    workers: NonNegativeInt = Field(
        default=1, description="processes that read images; 0 reads in a thread"
    )
    prefetch: NonNegativeInt = Field(default=4, description="batches that are read ahead")

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if low > high:
            raise ConfigError(f"scale_range {[low, high]}: give the smaller factor first")


@configuration
class OptimizerConfig:
    """AdamW after clipping; only kernels decay."""

    learning_rate: PositiveFloat = Field(default=1e-4, description="the highest of the schedule")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="the rate after warm-up: a cosine to zero at the last step, or constant",
    )
    warmup: NonNegativeInt = Field(default=50, description="steps in which the rate rises")
    betas: tuple[Decay, Decay] = Field(
        default=(0.9, 0.999), description="decay of the gradient's first and second moments"
    )
    weight_decay: NonNegativeFloat = Field(default=0.01, description="per step, times the rate")
    clip: PositiveFloat = Field(default=1.0, description="largest global norm of the gradient")
    microbatches: Count = Field(
        default=1, description="parts of a batch whose gradients are accumulated, to save memory"
    )
    ema_decay: Decay = Field(default=0.999, description="of the EMA weights; 0 keeps none")


@configuration
class ParallelConfig:
    """How a run is laid out on devices, and its precision.

    Batches are sharded over all devices, whose number is a multiple of `fsdp`. Learning parameters
    are kept in float32.
    """

    fsdp: Count = Field(
        default=1, description="devices that parameters and optimizer state are sharded over"
    )
    dtype: Dtype = Field(default="float32", description="dtype of the arithmetic")
    frozen_dtype: Dtype = Field(default="float32", description="dtype of frozen parameters")
    remat: Literal["none", "dots", "full"] = Field(
        default="none",
        description="what the backward pass recomputes: nothing, all but matrix products (dots), "
        "or everything inside a block (full)",
    )


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
    """One training run of one stage."""

    stage: Annotated[StageConfig, WrapValidator(_read_stage)]
    # Of any system that the stage trains: stages check it.
    model: Annotated[Any, WrapValidator(_read_model)] = DoSSRConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: NonNegativeInt = Field(default=50_000, description="length of the whole run")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of first weights, order of images, crops and all random draws"
    )
    save_every: NonNegativeInt = Field(
        default=1000, description="steps from checkpoint to checkpoint; 0: the last one alone"
    )
    keep: Count = Field(default=3, description="checkpoints kept")
    validate_every: NonNegativeInt = Field(
        default=1000, description="steps from validation to validation; 0: none"
    )
    log_every: Count = Field(default=20, description="steps that a line of the log averages")

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
