"""DoSSR itself: a ControlNet on the frozen prior, for the domain-shift process."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field, NonNegativeInt

from dossr_jax.config import ConfigError, DoSSRConfig, configuration
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.draws import Draw
from dossr_jax.models.dossr import DoSSR
from dossr_jax.systems.task.config import TaskConfig
from dossr_jax.training.stages import latent
from dossr_jax.training.stages.base import (
    Inputs,
    Metrics,
    Read,
    Stage,
    draw_normal,
    mean_of,
    pre_restore_crops,
)


@configuration
class DoSSRStage(Stage):
    """The ControlNet learns, and what else the fields name."""

    name: Literal["dossr"] = "dossr"
    start: Literal["lr", "noise"] = Field(
        default="lr",
        description="start of the sampler that the model is trained for and stores: lr, the "
        "shifted process as published, or noise, a ControlNet on plain diffusion, for comparisons",
    )
    times: Literal["all", "visited", "first"] = Field(
        default="all",
        description="t is drawn from all T times as published, from the first t1, which samplers "
        "visit (visited), or is always t1 - 1, where a one-step model evaluates (first)",
    )
    prompts: latent.Prompts = latent.PROMPTS
    learn_decoder: bool = Field(default=False, description="the UNet's decoder learns, too")
    lora_rank: NonNegativeInt = latent.LORA_RANK
    trains = (DoSSRConfig, TaskConfig)
    zero_output: ClassVar[bool] = False  # behind a zero output a ControlNet would never learn

    def __post_init__(self) -> None:
        if self.start == "noise" and self.times != "all":
            raise ConfigError('start "noise": only with times "all"')

    def learns(self, name: str) -> bool:
        decoder = self.learn_decoder and name.startswith(latent.UNET_DECODER)
        return decoder or name.startswith("control.")

    @property
    def adapter_rank(self) -> int:
        return self.lora_rank

    def time_range(self, model: DoSSRConfig) -> tuple[int, int]:
        schedule = make_schedule(model.process)
        if self.times == "all":
            return 0, len(schedule.alpha)
        return (schedule.t1 - 1 if self.times == "first" else 0), schedule.t1

    def loss(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Metrics]:
        """Mean |x0 - D| on the shifted process, of HR images and their pre-restored LR partners.

        As published, x0 is a sample of its posterior, x_lr the mode, and the pre-restored image is
        not clipped. With start "noise" it is :func:`latent.diffusion_loss` with the same hint.
        """
        x0 = latent.encode_hr(model, inputs)
        pre = pre_restore_crops(model, inputs)
        x_lr, hint = (model.latents(m.astype(jnp.float32)) for m in model.encode(pre))
        if t is None:
            t = latent.draw_times(inputs.keys, *self.time_range(model.config))
        eps = draw_normal(inputs.keys, Draw.NOISE, x0.shape[1:])
        context = latent.draw_contexts(model, inputs.keys, self.prompts)
        if self.start == "noise":
            loss = latent.diffusion_loss(model, x0, hint, context, t, eps)
        else:
            prediction = predict_x0(model, x0, x_lr, hint, context, t, eps)
            loss = process.training_loss(x0, prediction, per_sample=True)
        return loss, {"lr_error": mean_of(jnp.abs(x0 - x_lr))}

    def show(self, model: DoSSR, inputs: Inputs, t: Array | None) -> tuple[Array, Array]:
        """What the model's own sampler makes, before the colour fix."""
        return inputs.lr, latent.sample_images(model, inputs).decoded

    def adapt(self, config: Any, found: Any, read: Read) -> tuple[Any, Read]:
        """With the run's sampler; a ControlNet that adds nothing yet starts as the UNet."""
        sampler = dataclasses.replace(config.sampler, start=self.start)
        found = dataclasses.replace(found, sampler=sampler)
        fresh = not np.any(read("control.zero_mid.kernel"))
        return found, copy_unet_to_control(read) if fresh else read


def predict_x0(
    model: DoSSR, x0: Array, x_lr: Array, hint: Array, context: Array, t: Array, eps: Array
) -> Array:
    """Data prediction D on the shifted process, in float32 (DoSSR, arXiv 2409.17778).

    Args:
      x0, x_lr: scaled latents (b, h, w, z) of the HR and of the pre-restored image.
      hint: what the ControlNet sees: x_lr but for a separate hint encoder.
      context: (b, m, d). t: (b,) integers. eps: standard normal, as x0.
    """
    alpha, sigma, eta = latent.take_levels(make_schedule(model.config.process), t)
    x = process.q_sample(x0, x_lr, alpha, sigma, eta, eps)
    out = model.predict_noise(x, t, context, hint).astype(jnp.float32)
    return process.eps_to_x0(x, out, alpha, sigma)


def copy_unet_to_control(read: Read) -> Read:
    """The model that `read` gives, its ControlNet started from the UNet.

    The UNet's encoder is copied; the first convolution's inputs for the hint and the zero
    convolutions start at zero.
    """
    encoder, target = "unet.encoder.", "control.encoder."

    def started(name: str) -> np.ndarray:
        if name.startswith("control.zero_"):
            return np.zeros_like(read(name))
        if not name.startswith(target):
            return read(name)
        value = read(encoder + name.removeprefix(target))
        if name == target + "conv_in.kernel":
            value = np.concatenate([value, np.zeros_like(value)], axis=2)
        return value

    return started
