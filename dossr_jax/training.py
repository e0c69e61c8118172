"""Training of the four stages: what each learns, its loss, the state and the pure step.

A stage is a row of STAGES: the modules that learn and a loss function of the whole model. All
other parameters are split off and never reach the optimiser.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx
from jax import Array

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, TrainConfig, VAEConfig, to_json
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import Schedule, make_schedule
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.layers import space_to_depth
from dossr_jax.models.vae import posterior_mode, posterior_sample

Batch = Mapping[str, Any]
LossFn = Callable[[DoSSR, Batch, Array, TrainConfig], tuple[Array, dict[str, Array]]]

_EMA_WARMUP = 10
_START_LOGVAR = -6.0
_DECODER = (("unet", "up"), ("unet", "norm_out"), ("unet", "conv_out"))


class TrainState(NamedTuple):
    """Everything a step changes, one pytree. `total_steps` is the end of the cosine."""

    step: Array
    total_steps: Array
    learn: nnx.State
    frozen: nnx.State
    ema: nnx.State
    opt_state: optax.OptState


class Stage(NamedTuple):
    """`modules`: attributes of the model that learn. `latent`: batches are latents, not images."""

    modules: tuple[str, ...]
    loss: LossFn
    latent: bool


# --- losses -----------------------------------------------------------------------------------


def _psnr(a: Array, b: Array) -> Array:
    """Mean PSNR in dB of images (b, h, w, c) in [0, 1]."""
    error = jnp.mean((jnp.clip(a, 0, 1) - b) ** 2, axis=(1, 2, 3))
    return jnp.mean(-10 * jnp.log10(error + 1e-10))


def _unit(image: Array) -> Array:
    return image.astype(jnp.float32) / 255


def rrdb_loss(
    model: DoSSR, batch: Batch, key: Array, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """Mean |HR - RRDB(LR)| of images in [0, 1]."""
    del key, config
    hr, out = _unit(batch["hr"]), model.rrdb(_unit(batch["lr"]))
    return jnp.mean(jnp.abs(hr - out)), {"psnr": _psnr(out, hr)}


def vae_loss(
    model: DoSSR, batch: Batch, key: Array, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """L1 of the image and of its differences, plus the posterior's KL to a unit normal.

    The differences weigh edges and texture, a few dark pixels among the many of flat areas.
    """
    image = 2 * _unit(batch["hr"]) - 1
    moments = model.vae.encode(image)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    out = model.vae.decode(posterior_sample(moments, jax.random.normal(key, mean.shape)))
    error = image - out
    l1 = jnp.mean(jnp.abs(error))
    edges = sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
    loss = l1 + 0.5 * edges + config.kl_weight * kl
    return loss, {"psnr": _psnr((out + 1) / 2, (image + 1) / 2), "kl": kl}


def _contexts(model: DoSSR, prompt: Array) -> Array:
    """Stored embeddings (b, m, d) chosen by `prompt`, 0 for the default and 1 for the negative."""
    return jnp.stack([model.context[...], model.negative_context[...]])[prompt]


def _noised(
    schedule: Schedule, batch: Batch, key: Array, times: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Times uniform below `times`, the forward process at them: (t, eps, x, alpha, sigma)."""
    tables = schedule.alpha, schedule.sigma, schedule.eta
    key_t, key_eps = jax.random.split(key)
    t = jax.random.randint(key_t, batch["x0"].shape[:1], 0, times)
    eps = jax.random.normal(key_eps, batch["x0"].shape)
    alpha, sigma, eta = (process.gather(jnp.asarray(a, jnp.float32), t) for a in tables)
    x = process.q_sample(batch["x0"], batch["x_lr"], alpha, sigma, eta, eps)
    return t, eps, x, alpha, sigma


def prior_loss(
    model: DoSSR, batch: Batch, key: Array, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """Plain diffusion: mean squared error of the predicted noise, t uniform, no shift."""
    del config
    schedule = make_schedule(model.config.process).no_shift()
    t, eps, x, _, _ = _noised(schedule, batch, key, len(schedule.alpha))
    out = model.predict_noise(x, t, _contexts(model, batch["prompt"]), None)
    return jnp.mean((out - eps) ** 2), {}


def dossr_loss(
    model: DoSSR, batch: Batch, key: Array, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """Mean |x0 - D| on the shifted process, hint = x_lr (DoSSR, arXiv 2409.17778).

    With all T times, as published, the many beyond t1 outweigh the others: sigma / alpha inflates
    their error by up to 15.
    """
    schedule = make_schedule(model.config.process)
    times = len(schedule.alpha) if config.times == "all" else schedule.t1
    t, _, x, alpha, sigma = _noised(schedule, batch, key, times)
    out = model.predict_noise(x, t, _contexts(model, batch["prompt"]), batch["x_lr"])
    loss = process.training_loss(out, x, batch["x0"], alpha, sigma)
    return loss, {"lr_error": jnp.mean(jnp.abs(batch["x0"] - batch["x_lr"]))}


STAGES = {
    "rrdb": Stage(("rrdb",), rrdb_loss, latent=False),
    "vae": Stage(("vae",), vae_loss, latent=False),
    "prior": Stage(("unet",), prior_loss, latent=True),
    "dossr": Stage(("control",), dossr_loss, latent=True),
}


# --- models -----------------------------------------------------------------------------------


def make_model(config: DoSSRConfig, seed: int) -> DoSSR:
    """A model to train from scratch.

    The two prompt embeddings, which no text tower made, are fixed random vectors. Residual
    branches and the UNet's output start at zero, so that the first steps are gentle.
    """
    model = DoSSR(config, rngs=nnx.Rngs(seed))
    for name, param in weights.names_and_params(model):
        residual = name.endswith((".conv2.kernel", ".proj_out.kernel"))
        if name.startswith(("unet.", "vae.")) and (residual or name == "unet.conv_out.kernel"):
            param[...] = jnp.zeros_like(param[...])
    for i, param in enumerate((model.context, model.negative_context)):
        draw = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), param.shape)
        # Exact in the bfloat16 of the file that ships.
        param[...] = draw.astype(jnp.bfloat16).astype(param.dtype)
    return model


def start_control(model: DoSSR) -> None:
    """Copy the UNet's encoder into the ControlNet; the hint's inputs and zero convs start at 0."""
    source = dict(weights.names_and_params(model.unet.encoder))
    for name, param in weights.names_and_params(model.control.encoder):
        value = source[name][...]
        if name == "conv_in.kernel":
            value = jnp.concatenate([value, jnp.zeros_like(value)], axis=2)
        param[...] = jnp.array(value)
    for name, param in weights.names_and_params(model.control):
        if name.startswith("zero_"):
            param[...] = jnp.zeros_like(param[...])


def load_for(config: TrainConfig, path: Path | None) -> DoSSR:
    """The model a run starts from: the one of the stage before, or a fresh one for None.

    Raises:
      UserError: the file holds another architecture.
    """
    if path is None:
        model = make_model(config.model, config.seed)
    else:
        model = weights.load_model(path)
        if _architecture(model.config) != _architecture(config.model):
            raise UserError(
                f"{path}: its architecture is not the configuration's; give the file that the "
                "stage before wrote"
            )
    if config.stage == "dossr" and not jnp.any(model.control.zero_mid.kernel[...]):
        start_control(model)  # a trained one goes on
    return model


def _architecture(config: DoSSRConfig) -> DoSSRConfig:
    """Configuration without the scale factor, which training sets."""
    vae = dataclasses.replace(config.vae, scale_factor=VAEConfig.scale_factor)
    return dataclasses.replace(config, vae=vae)


def start_vae(model: DoSSR, images: np.ndarray) -> None:
    """Make a fresh one-level autoencoder compute the best linear code of its patches.

    The principal components of patches are worth 31 dB at once where random weights take hours
    to get there; training then starts with what is not linear. Latents get deviations
    proportional to the components' to the power 1/4: equal ones would make the process spend as
    much on faint detail as on brightness, and plain ones would leave detail below the noise of a
    sampler's last steps.

    The path through the last norm and SiLU is kept linear by giving every latent a norm group of
    its own, (p, -p, K, -K): the constants fix the norm's deviation, and silu(u) - silu(-u) = u.

    Args:
      model: from :func:`make_model`, whose residual branches are zero.
      images: (b, h, w, 3) uint8, sides multiples of the patch.
    """
    config = model.config.vae
    z, block, groups = config.z_channels, config.patch_size, config.norm_groups
    width = config.base_channels // groups
    if len(config.channel_mult) > 1 or width < 4 or z > groups:
        raise ValueError("a linear start needs one level and a norm group of 4 for every latent")
    patches = np.asarray(space_to_depth(2 * jnp.asarray(_unit(images)) - 1, block), np.float64)
    patches = patches.reshape(-1, patches.shape[-1])
    center = patches.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    deviation, axes = np.sqrt(values[::-1][:z]), axes[:, ::-1][:, :z]
    wanted = deviation**0.25 / np.sqrt(np.mean(deviation**0.5))
    anchor = 8 * wanted.max()
    gain = np.sqrt((anchor**2 + wanted**2) / 2)  # what the norm divides by
    plus = width * np.arange(z)

    def spread(conv: nnx.Conv, matrix: np.ndarray, offset: np.ndarray) -> None:
        """First convolution: group g starts as (p_g, -p_g, K, -K) with p = x matrix + offset."""
        kernel, bias = np.array(conv.kernel[...]), np.array(conv.bias[...])
        taken = plus[:, None] + np.arange(width)
        kernel[..., taken], bias[taken] = 0, 0
        for channel, sign in ((plus, 1), (plus + 1, -1)):
            kernel[1, 1][:, channel], bias[channel] = sign * matrix, sign * offset
        bias[plus + 2], bias[plus + 3] = anchor, -anchor
        conv.kernel[...], conv.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)

    def gather(conv: nnx.Conv, matrix: np.ndarray, offset: np.ndarray) -> None:
        """Last convolution: p matrix + offset out of the groups."""
        kernel = np.zeros_like(conv.kernel[...])
        kernel[1, 1, plus], kernel[1, 1, plus + 1] = gain[:, None] * matrix, -gain[:, None] * matrix
        conv.kernel[...] = jnp.asarray(kernel)
        conv.bias[...] = jnp.asarray(offset, jnp.float32)

    encoder, decoder = model.vae.encoder, model.vae.decoder
    inward = axes * (wanted / deviation)
    spread(encoder.conv_in, inward, -center @ inward)
    mean = np.eye(z, 2 * z)
    gather(encoder.conv_out, mean, np.repeat([0.0, _START_LOGVAR], z))
    spread(decoder.conv_in, np.eye(z), np.zeros(z))
    gather(decoder.conv_out, (axes * (deviation / wanted)).T, center)
    for conv in (encoder.quant_conv, decoder.post_quant_conv):
        conv.kernel[...] = jnp.eye(conv.kernel.shape[-1])[None, None]


def set_scale_factor(model: DoSSR, images: np.ndarray) -> None:
    """Make scaled latents of `images` (b, h, w, 3) uint8 have unit deviation on the whole."""
    moments = nnx.jit(lambda vae, x: vae.encode(2 * _unit(x) - 1))(model.vae, images)
    factor = round(1 / float(jnp.std(posterior_mode(moments))), 5)
    vae = dataclasses.replace(model.config.vae, scale_factor=factor)
    model.config = dataclasses.replace(model.config, vae=vae)


def fingerprint(model: DoSSR) -> str:
    """Hash of the parameters and settings that latents depend on."""
    digest = hashlib.sha256(to_json(model.config.vae).encode())
    for name, param in weights.names_and_params(model):
        if name.startswith(("vae.", "rrdb.")):
            digest.update(np.asarray(param[...]).tobytes())
    return digest.hexdigest()[:12]


@nnx.jit
def encode_pair(model: DoSSR, hr: Array, lr: Array) -> tuple[Array, Array]:
    """Scaled latents (posterior modes) of HR crops and of pre-restored LR crops, uint8 in."""
    x0 = model.latents(model.encode(_unit(hr))[0])
    x_lr = model.latents(model.encode(model.rrdb(_unit(lr)))[1])
    return x0, x_lr


# --- the step ---------------------------------------------------------------------------------


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step applies; matrices alone decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(*config.betas),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
        ),
    )


def learning_rate(config: TrainConfig, step: Array, total_steps: Array) -> Array:
    """Linear warm-up, then a cosine that reaches zero at `total_steps`."""
    warm = jnp.minimum(1.0, (step + 1) / config.warmup)
    done = jnp.clip(step / total_steps, 0, 1)
    return config.learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * done))


def split(model: DoSSR, config: TrainConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(structure, parameters that learn, the rest) of a run."""
    modules = STAGES[config.stage].modules

    def learns(path: tuple, _: Any) -> bool:
        return path[0] in modules or (config.learn_decoder and path[:2] in _DECODER)

    return nnx.split(model, learns, ...)


def init_state(config: TrainConfig, model: DoSSR) -> tuple[nnx.GraphDef, TrainState]:
    """First state of a run; the model's arrays are copied, for steps donate theirs."""
    graphdef, learn, frozen = split(model, config)
    copy = functools.partial(jax.tree.map, jnp.array)
    learn = copy(learn)
    state = TrainState(
        step=jnp.int32(0),
        total_steps=jnp.int32(config.steps),
        learn=learn,
        frozen=copy(frozen),
        ema=copy(learn),
        opt_state=make_optimizer(config).init(learn),
    )
    return graphdef, state


def make_train_step(
    config: TrainConfig, graphdef: nnx.GraphDef
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """The pure step (state, batch, key) -> (state, metrics), jitted; it donates the state."""
    loss_fn, optimizer = STAGES[config.stage].loss, make_optimizer(config)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Batch, key: Array):
        key = jax.random.fold_in(key, state.step)

        def loss_of(learn: nnx.State):
            return loss_fn(nnx.merge(graphdef, learn, state.frozen), batch, key, config)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.learn)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.learn)
        rate = learning_rate(config, state.step, state.total_steps)
        learn = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), state.learn, updates)
        # Early on the average follows closely, or it would remember the random start.
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (_EMA_WARMUP + state.step))
        ema = jax.tree.map(lambda e, p: p + (decay * (e - p)).astype(p.dtype), state.ema, learn)
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads), "rate": rate}
        return (
            state._replace(step=state.step + 1, learn=learn, ema=ema, opt_state=opt_state),
            metrics,
        )

    return train_step


def make_eval_step(
    config: TrainConfig, graphdef: nnx.GraphDef
) -> Callable[[TrainState, Batch, Array], dict[str, Array]]:
    """Loss and metrics of the averaged weights on a batch."""
    loss_fn = STAGES[config.stage].loss

    @jax.jit
    def eval_step(state: TrainState, batch: Batch, key: Array):
        model = nnx.merge(graphdef, state.ema, state.frozen)
        loss, metrics = loss_fn(model, batch, key, config)
        return metrics | {"loss": loss}

    return eval_step


def averaged_model(graphdef: nnx.GraphDef, state: TrainState) -> DoSSR:
    """The model with the averaged weights, in copies of its own."""
    return nnx.merge(graphdef, *jax.tree.map(jnp.array, (state.ema, state.frozen)))


# --- saving -----------------------------------------------------------------------------------


def _named(state: TrainState) -> dict[str, Array]:
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def save_state(path: Path, config: TrainConfig, state: TrainState) -> None:
    """Write a state whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    # The writer has no scalars: they travel as vectors of one.
    arrays = {name: np.atleast_1d(leaf) for name, leaf in _named(state).items()}
    weights.write_safetensors(path, arrays, arrays.__getitem__, {"train": to_json(config)})


def restore_state(path: Path, config: TrainConfig, like: TrainState) -> TrainState:
    """Read what :func:`save_state` wrote into the structure of `like`.

    Raises:
      UserError: no such file, damaged, or of another configuration.
    """
    file = weights.SafetensorsFile(path)
    if _same_run(file.metadata.get("train")) != _same_run(to_json(config)):
        raise UserError(
            f"{path}: was trained with another configuration; choose another output folder"
        )
    leaves = [jnp.asarray(file.read(n)).reshape(leaf.shape) for n, leaf in _named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _same_run(text: str | None) -> Any:
    """Configuration as a plain dict, without the length, which a resumed run may change."""
    if text is None:
        return None
    return {k: v for k, v in json.loads(text).items() if k not in ("steps", "minutes")}


def export(path: Path, model: DoSSR, notes: Mapping[str, str]) -> None:
    """Write the model in bfloat16, as it ships."""
    weights.save_model(path, model, dtype=ml_dtypes.bfloat16, notes=notes)
