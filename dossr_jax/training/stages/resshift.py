"""ResShift: the network learns the clean latent from any step of the chain."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dossr_jax import method
from dossr_jax.config import configuration
from dossr_jax.diffusion import process
from dossr_jax.draws import Draw
from dossr_jax.systems import Run, resshift
from dossr_jax.systems.resshift.config import ResShiftConfig
from dossr_jax.systems.resshift.process import make_levels
from dossr_jax.training.stages import latent
from dossr_jax.training.stages.base import Inputs, Metrics, Stage, draw_normal, fold, mean_of


@configuration
class ResShiftStage(Stage):
    """The UNet learns by the mean squared error of x0, unweighted, at steps drawn uniformly.

    The autoencoder is frozen: start from a model file that has one.
    """

    name: Literal["resshift"] = "resshift"
    zero_output: ClassVar[bool] = False
    trains = (ResShiftConfig,)

    def learns(self, name: str) -> bool:
        return name.startswith("unet.")

    def time_range(self, model: ResShiftConfig) -> tuple[int, int]:
        return 0, model.process.steps

    def loss(
        self, model: resshift.ResShift, inputs: Inputs, t: Array | None
    ) -> tuple[Array, Metrics]:
        """Mean squared error (b,) of the predicted latent of the HR images."""
        if t is None:
            t = latent.draw_times(inputs.keys, *self.time_range(model.config))
        x0 = model.vq.encode(2 * inputs.hr - 1).astype(jnp.float32)
        eps = draw_normal(inputs.keys, Draw.NOISE, x0.shape[1:])
        prediction, x_lr = predict_x0(model, x0, inputs.lr, t, eps)
        return mean_of((prediction - x0) ** 2), {"lr_error": mean_of(jnp.abs(x0 - x_lr))}

    def show(
        self, model: resshift.ResShift, inputs: Inputs, t: Array | None
    ) -> tuple[Array, Array]:
        """What the model's own chain makes."""
        size = jnp.array(inputs.lr.shape[1:3], jnp.int32)
        run = Run(
            size=jnp.broadcast_to(size, (len(inputs.lr), 2)),
            apply=method.whole,
            noise=method.KeyNoise(fold(inputs.keys, Draw.SAMPLING)),
            table=resshift.solver_table(model.config, model.config.sampler),
        )
        return inputs.lr, resshift.restore(model, inputs.lr, run).decoded


def predict_x0(
    model: resshift.ResShift, x0: Array, lr: Array, t: Array, eps: Array
) -> tuple[Array, Array]:
    """The prediction of x0 at steps t (b,), and the latents of the enlarged LR images.

    Args:
      x0: latents (b, h, w, z) of the HR images. lr: LR images (b, h, w, 3) in [0, 1].
      eps: standard normal, as x0.
    """
    _, condition = resshift.encode_lr(model, lr)
    x_lr = condition.x_lr.astype(x0.dtype)
    alpha, sigma, eta = (
        process.take_levels(jnp.asarray(values, x0.dtype), t)
        for values in make_levels(model.config.process)
    )
    x = process.q_sample(x0, x_lr, alpha, sigma, eta, eps)
    prediction = resshift.predict(model, x, t, sigma, condition.hint)
    return prediction.astype(x0.dtype), jax.lax.stop_gradient(x_lr)
