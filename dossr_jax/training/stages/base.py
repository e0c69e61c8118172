"""What every stage is made of: samples, random draws, and what the trainer asks of a stage.

All randomness of a sample derives from its key, so that its loss depends neither on its place in
the batch nor on the number of devices or processes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax.config import (
    ConfigError,
    DoSSRConfig,
    ModelConfig,
    StageConfig,
    TrainConfig,
    configuration,
)
from dossr_jax.draws import Draw
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.unet import Remat
from dossr_jax.systems import system_of

Metrics = dict[str, Array]
Read = Callable[[str], np.ndarray]  # parameter of a model file by its dotted name


class Inputs(NamedTuple):
    """Samples on the device: `hr` (b, h, w, 3) and `lr` in [0, 1], and one key per sample (b,).

    `pre`, as `hr`: the pre-restored images, where they were made beforehand.
    """

    hr: Array
    lr: Array
    keys: Array
    pre: Array | None = None


@configuration
class Stage(StageConfig, abc.ABC):
    """One kind of training run. Subclasses have a `name` and whatever fields their loss reads.

    Attributes:
      needs_lr: whether the loss looks at LR images; without, none are made.
      zero_output: whether the UNet of a model from scratch starts with a zero output.
      trains: classes of configurations of the models that it trains.
    """

    needs_lr: ClassVar[bool] = True
    zero_output: ClassVar[bool] = True
    trains: ClassVar[tuple[type[ModelConfig], ...]] = (DoSSRConfig,)

    @staticmethod
    def of(config: TrainConfig) -> Stage:
        """The stage of a run."""
        assert isinstance(config.stage, Stage)
        return config.stage

    def make_module(self, config: Any, *, remat: Remat, **options: Unpack[LayerOptions]) -> Any:
        """The module that the run trains: the model, and what only its loss needs."""
        return system_of(config).module(config, remat=remat, **options)

    @abc.abstractmethod
    def learns(self, name: str) -> bool:
        """Whether the run trains the parameter of this dotted name; all others are frozen."""

    @abc.abstractmethod
    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Loss (b,) per sample, and further metrics (b,).

        `t` (b,) int32: the times of a latent stage; None draws them.
        """

    @abc.abstractmethod
    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        """Input and output images (b, h, w, 3); validation compares the output with HR."""

    def time_range(self, model: Any) -> tuple[int, int] | None:
        """Times of a latent stage, from the first to before the second; None without times.

        `model`: the model's configuration.
        """
        return None

    def check(self, config: TrainConfig) -> None:
        """Refuse a run whose common settings do not fit the stage."""
        if not isinstance(config.model, self.trains):
            raise ConfigError(
                f"model.system {config.model.system}: stage {self.name} does not train it"
            )

    def check_scale(self, config: TrainConfig, scale: int) -> None:
        """Refuse LR images that are `scale` times smaller than the HR crops.

        Raises:
          UserError: the model makes images of another size of them.
        """
        system = system_of(config.model)
        factor = system.geometry(config.model).factor
        if factor != scale:
            raise UserError(
                f"HR images that are reduced by {scale} (data.presets "
                f"{', '.join(config.data.presets)}, or pairs), and {system.title}, which enlarges "
                f"by {factor}: choose data and presets that reduce by {factor}, or another model"
            )

    @property
    def training_only(self) -> tuple[str, ...]:
        """Attributes of the stage's module that are no part of the model."""
        return ()

    @property
    def adapter_rank(self) -> int:
        """Rank of the low-rank adapters (LoRA) of the UNet's attention; 0 has none."""
        return 0

    def initialize(self, model: DoSSR, crops: Callable[[], np.ndarray]) -> None:
        """Change the random weights of a model trained from scratch, given HR crops uint8."""

    def adapt(self, config: Any, found: Any, read: Read) -> tuple[Any, Read]:
        """What the run starts from: the weights `read` of model `found`, fitted to `config`."""
        return found, read

    def finalize(self, model: DoSSR, crops: Callable[[], np.ndarray]) -> None:
        """Complete a trained model before it is exported, given HR crops uint8."""


def fold(keys: Array, data: int | Array) -> Array:
    """Keys (b,) for one purpose out of the samples' keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def draw_normal(keys: Array, purpose: Draw | Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (b, *shape) for one purpose, from each sample's key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(fold(keys, purpose))


def pre_restore_crops(model: DoSSR, inputs: Inputs, *, clip: bool = False) -> Array:
    """Pre-restored images (b, h, w, 3) of the HR crops' size; training does not clip, as published.

    Images made beforehand are clipped and rounded to 8 bits.
    """
    if inputs.pre is not None:
        return inputs.pre
    _, height, width, _ = inputs.hr.shape
    return model.pre_restore(inputs.lr, (height, width), clip=clip)


def mean_of(x: Array) -> Array:
    """Mean over all but the first axis, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim)))


def psnr(a: Array, b: Array) -> Array:
    """PSNR in dB (b,) of images in [0, 1]; `a` is clipped to it."""
    return -10 * jnp.log10(mean_of((jnp.clip(a.astype(jnp.float32), 0, 1) - b) ** 2) + 1e-10)
