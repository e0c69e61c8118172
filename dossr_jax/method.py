"""The published method as pure functions of a model.

An LR image becomes the pre-restored image, that the condition (the LR latent and the ControlNet's
hint); a sampler runs the denoiser; the result is decoded and its colours are fixed. Restoration,
training, planning and the cross-check all call these functions and add only what is theirs: tiles
and shards (`apply`), losses, stored noise. Source: DoSSR, arXiv 2409.17778.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from dossr_jax.config import UPSCALE, LatentConfig
from dossr_jax.config.sampler import ColorFix, Prediction
from dossr_jax.diffusion import process, solver
from dossr_jax.draws import Draw
from dossr_jax.image import batch_position_noise, color_fix
from dossr_jax.models.dossr import ControlledModel

Image = Float[Array, "b h w c"]
Latent = Float[Array, "b lh lw z"]
Sizes = Int[Array, "b 2"]
Shape = tuple[int, int, int]  # of a latent


@runtime_checkable
class Apply(Protocol):
    """Runs a network over canvases: (fn, inputs, pixels per latent position of each input and of
    the output, output channels, rows of images) -> output, float32 at least.

    `of_images`: arrays (b, ...) of which fn gets, after its inputs, the rows of their images."""

    def __call__(
        self,
        fn: Callable[..., Array],
        inputs: Sequence[Array],
        in_px: Sequence[int],
        out_px: int,
        channels: int,
        of_images: Sequence[Array] = (),
    ) -> Array: ...


def whole(
    fn: Callable[..., Array],
    inputs: Sequence[Array],
    in_px: Sequence[int],
    out_px: int,
    channels: int,
    of_images: Sequence[Array] = (),
) -> Array:
    """The canvases at once."""
    out = fn(*inputs, *of_images)
    return out.astype(jnp.promote_types(out.dtype, jnp.float32))


# --- noise --------------------------------------------------------------------------------------


class KeyNoise(NamedTuple):
    """Noise of one key per image, (b,): a function of key, purpose and position alone.

    origin: where in its picture each image begins, int32 (b, 2) latent positions; None is 0.
    """

    keys: Key[Array, " b"]
    origin: Sizes | None = None

    @classmethod
    def of_seeds(cls, seeds: Sequence[int]) -> KeyNoise:
        """Noise of jax.random.key(seed) for every seed, from 0 to 2**32 - 1."""
        # By hand, of NumPy's numbers: the library's function compiles a program of its own.
        data: Any = np.stack([np.zeros(len(seeds)), seeds], axis=-1).astype(np.uint32)
        return cls(jax.random.wrap_key_data(data, impl="threefry2x32"))

    def initial(self, shape: Shape) -> tuple[Array, Array]:
        """Posterior and start noise, (b, *shape) each."""
        # Generators compile slowly: the two draws share one.
        folded = jnp.concatenate([self._fold(draw) for draw in (Draw.POSTERIOR, Draw.START)])
        origin = None if self.origin is None else jnp.tile(self.origin, (2, 1))
        posterior, start = jnp.split(batch_position_noise(folded, *shape, origin=origin), 2)
        return posterior, start

    def step(self, i: Array, shape: Shape) -> Array:
        """Noise of step i, (b, *shape)."""
        return batch_position_noise(self._fold(Draw.FIRST_STEP + i), *shape, origin=self.origin)

    def _fold(self, draw: Array | int) -> Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, draw))(self.keys)


class StoredNoise(NamedTuple):
    """Noise that was drawn elsewhere: posterior and start (b, h, w, z), steps (n, b, h, w, z)."""

    posterior: Array
    start: Array
    steps: Array

    def initial(self, shape: Shape) -> tuple[Array, Array]:
        """As KeyNoise."""
        return self.posterior, self.start

    def step(self, i: Array, shape: Shape) -> Array:
        """As KeyNoise."""
        return self.steps[i]


Noise = KeyNoise | StoredNoise


# --- networks -----------------------------------------------------------------------------------

# (x (b, h, w, z), point, hint as x) -> the network's output, as x.
Predict = Callable[[Array, solver.Point, Array], Array]


@runtime_checkable
class Networks(Protocol):
    """What the method asks of a model, besides a prediction; see dossr_jax.models.dossr."""

    @property
    def config(self) -> LatentConfig: ...

    def encode(self, image: Array) -> tuple[Array, Array]: ...

    def latents(self, moments: Array, noise: Array | None = None) -> Array: ...

    def decode(self, latents: Array) -> Array: ...


# --- the method ---------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
    """What steers sampling; all of it is traced, so that changing it compiles nothing.

    context, negative_context: prompt embeddings (m, d), of systems that have them. The rest are
    scalars. cfg_scale: classifier-free guidance. strength: factor on the ControlNet's residuals.
    fidelity: from 0, free, to 1, the LR latent; may vary over it, (b, h, w, 1). pixel_scale,
    semantic_scale: of PiSA-SR's two adapters.
    """

    # A pytree: in place of arrays JAX puts shapes, tracers and placeholders.
    context: Any = None
    negative_context: Any = None
    cfg_scale: Any = 1.0
    strength: Any = 1.0
    fidelity: Any = 0.0
    pixel_scale: Any = 1.0
    semantic_scale: Any = 1.0


class Condition(NamedTuple):
    """What an LR image is to the sampler, scaled latents (b, h, w, z).

    x_lr: a sample of the posterior. hint: the posterior's mode, by the hint encoder.
    """

    x_lr: Array
    hint: Array


class Restoration(NamedTuple):
    """All intermediate results. Images (b, H, W, 3) float, about [0, 1]; latents (b, h, w, z).

    path: every step of the solver, if it was asked for. Without a solver there are images alone.
    """

    pre_restored: Array
    decoded: Array
    result: Array
    condition: Condition | None = None
    latents: Array | None = None
    path: solver.Path | None = None

    @classmethod
    def of(cls, image: Array) -> Restoration:
        """One image for all of them."""
        return cls(image, image, image)


def encode_lr(
    model: Networks, pre: Image, noise_posterior: Array, *, apply: Apply = whole
) -> Condition:
    """The condition of pre-restored images (b, H, W, 3) in [0, 1]."""
    z, unit = model.config.vae.z_channels, model.config.vae.downscale

    def encode(image: Array) -> Array:
        moments, hint = model.encode(image)
        return jnp.concatenate([moments, hint[..., :z]], axis=-1)

    encoded = apply(encode, [pre], [unit], 1, 3 * z)
    moments, hint = encoded[..., : 2 * z], encoded[..., 2 * z :] * model.config.vae.scale_factor
    return Condition(model.latents(moments, noise_posterior), hint)


def make_predict(
    model: ControlledModel, controls: Controls, guided: bool, times: Float[Array, " n"]
) -> Predict:
    """The prediction of DoSSR's networks in the steps of a solver.

    `guided`: classifier-free guidance by `controls.cfg_scale`, a second UNet pass per step.
    """
    contexts = [controls.context, controls.negative_context] if guided else [controls.context]
    networks = [model.for_steps(times, context[None]) for context in contexts]

    def predict(x: Array, point: solver.Point, hint: Array) -> Array:
        row = jnp.reshape(point.index, 1)
        outputs = [network(x, row, hint, controls.strength) for network in networks]
        if not guided:
            return outputs[0]
        toward, away = outputs
        return process.guide(toward, away, controls.cfg_scale)

    return predict


def make_denoiser(
    predict: Predict,
    condition: Condition,
    fidelity: Any,
    prediction: Prediction,
    *,
    apply: Apply = whole,
) -> solver.DenoiseFn:
    """The function (x, point) -> D that a solver calls.

    Args:
      fidelity: see Controls. prediction: what `predict` gives.
    """

    def denoise(x: Array, point: solver.Point) -> Array:
        def output(x: Array, hint: Array) -> Array:
            return predict(x, point, hint)

        out = apply(output, [x, condition.hint], [1, 1], 1, x.shape[-1])
        x0 = process.to_x0(x, out, point.alpha, point.sigma, prediction)
        return process.toward_lr(x0, condition.x_lr, fidelity)

    return denoise


def decode_latents(
    model: Networks,
    latents: Latent,
    x_lr: Latent,
    pre: Image,
    fix: ColorFix,
    *,
    apply: Apply = whole,
) -> tuple[Image, Image]:
    """Decoded images (b, H, W, 3), and the same as the colour fix is to see them.

    For fix "residual" that is the pre-restored image and what the latents change in the decoding of
    its own latents: the autoencoder's error cancels.
    """
    unit = model.config.vae.downscale
    decoded = apply(model.decode, [latents], [1], unit, 3)
    if fix != "residual":
        return decoded, decoded
    return decoded, pre + decoded - apply(model.decode, [x_lr], [1], unit, 3)


def run_solver(
    denoise: solver.DenoiseFn,
    condition: Condition,
    noise_start: Array,
    shape: Shape,
    *,
    table: solver.SolverTable,
    noise: Noise,
    keep_path: bool = False,
    gradient_steps: int | None = None,
) -> tuple[Latent, solver.Path | None]:
    """The latents that a solver ends with and, if wanted, its path."""
    run = denoise, condition.x_lr, table, noise_start, lambda i: noise.step(i, shape)
    if keep_path:
        return solver.sample_path(*run)
    return solver.sample(*run, gradient_steps=gradient_steps), None


def restore_images(
    model: Networks,
    pre: Image,
    size: Sizes,
    *,
    table: solver.SolverTable,
    controls: Controls,
    noise: Noise,
    fix: ColorFix,
    factor: int = UPSCALE,
    guided: bool = False,
    keep_path: bool = False,
    gradient_steps: int | None = None,
    apply: Apply = whole,
    predictor: Callable[[Any, Controls, bool, Array], Predict] = make_predict,
) -> Restoration:
    """From pre-restored images to the result.

    Args:
      model: networks of DoSSR, or of the kind that `predictor` takes.
      pre: pre-restored images (b, H, W, 3) in [0, 1], float32 or float64.
      size: valid part of every LR canvas, int32 (b, 2).
      factor: pixels of `pre` per pixel of the LR canvas.
      keep_path: keep every step of the solver.
      gradient_steps: as in :func:`dossr_jax.diffusion.solver.sample`, without keep_path.
    """
    unit, z = model.config.vae.downscale, model.config.vae.z_channels
    shape = (pre.shape[1] // unit, pre.shape[2] // unit, z)
    noise_posterior, noise_start = noise.initial(shape)
    condition = encode_lr(model, pre, noise_posterior, apply=apply)
    predict = predictor(model, controls, guided, jnp.asarray(table.rows.t))
    prediction = model.config.process.prediction
    denoise = make_denoiser(predict, condition, controls.fidelity, prediction, apply=apply)
    latents, path = run_solver(
        denoise,
        condition,
        noise_start,
        shape,
        table=table,
        noise=noise,
        keep_path=keep_path,
        gradient_steps=gradient_steps,
    )
    decoded, image = decode_latents(model, latents, condition.x_lr, pre, fix, apply=apply)
    result = color_fix(fix, image, pre, factor * size)
    return Restoration(pre, decoded, result, condition, latents, path)
