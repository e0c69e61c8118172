"""From a batch of host arrays to the next state: degradation, loss, gradient, optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.config import TrainConfig
from dossr_jax.data import degradation
from dossr_jax.draws import Draw
from dossr_jax.training.params import Params, all_gather, build, ema_model
from dossr_jax.training.stages.base import Inputs, Metrics, Stage, fold
from dossr_jax.training.state import KEY_IMPL, TrainState, learning_rate, make_optimizer

Batch = Mapping[str, Any]

_EMA_WARMUP = 10
# On a CPU, XLA removes the barriers around recomputation, then merges it with the first pass.
_CPU_REMAT = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def choose_presets(config: TrainConfig) -> tuple[degradation.Preset, ...]:
    """The degradations of a run.

    Raises:
      UserError: unknown presets, or such that do not fit the model's enlargement.
    """
    presets = degradation.choose_presets(config.data.presets)
    Stage.of(config).check_scale(config, presets[0].scale)
    return presets


def make_inputs(config: TrainConfig, mesh: Mesh) -> Callable[[Array, Batch], Inputs]:
    """Function (key data, batch) -> the stage's inputs, of a batch of dossr_jax.data.pipeline.

    Images without LR partners are degraded here, on the device.
    """
    stage = Stage.of(config)
    degrade = parallel.on_each_device(
        functools.partial(degradation.degrade, presets=choose_presets(config)), mesh
    )

    def inputs(key_data: Array, batch: Batch) -> Inputs:
        seed_key = jax.random.wrap_key_data(key_data, impl=KEY_IMPL)
        keys = jax.vmap(lambda number: jax.random.fold_in(seed_key, number))(batch["id"])
        hr = jnp.asarray(batch["hr"], jnp.float32) / 255
        if "lr" in batch:
            if stage.needs_lr:
                stage.check_scale(config, hr.shape[1] // batch["lr"].shape[1])
            lr = jnp.asarray(batch["lr"], jnp.float32) / 255
        elif stage.needs_lr:
            lr = degrade(fold(keys, Draw.DEGRADE), hr)
        else:
            lr = hr  # the stage does not read it
        pre = jnp.asarray(batch["pre"], jnp.float32) / 255 if "pre" in batch else None
        return Inputs(hr, lr, keys, pre)

    return inputs


def make_train_step(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    tx: optax.GradientTransformation | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step (state, batch) -> (state, metrics), jitted; it donates the state.

    A batch is what dossr_jax.data.pipeline yields, as global arrays. Metrics are means over it:
    `loss`, those of the stage, `grad_norm` before clipping and the learning `rate`, which an
    optimizer `tx` in place of the configuration's does not tell. It is given the loss as `value`.
    """
    stage = Stage.of(config)
    optimizer = optax.with_extra_args_support(tx or make_optimizer(config.optimizer, config.steps))
    rate = learning_rate(config.optimizer, config.steps)
    inputs_of = make_inputs(config, mesh)
    microbatches = config.optimizer.microbatches

    def grads_of(state: TrainState, frozen: Params, batch: Batch) -> tuple[Params, Metrics]:
        """Gradient of the mean loss of a batch, and its metrics."""

        def mean_loss(learn: Params) -> tuple[Array, Metrics]:
            model = build(graphdef, {**frozen, **all_gather(learn, config, mesh)})
            loss, metrics = stage.loss(model, inputs_of(state.key, batch), None)
            means = {name: jnp.mean(value) for name, value in (metrics | {"loss": loss}).items()}
            return means["loss"], means

        grads, metrics = jax.grad(mean_loss, has_aux=True)(state.learn)
        shardings = parallel.state_shardings(grads, mesh)
        return jax.lax.with_sharding_constraint(grads, shardings), metrics

    recomputes_on_cpu = config.parallel.remat != "none" and mesh.devices.flat[0].platform == "cpu"
    options = _CPU_REMAT if recomputes_on_cpu else None

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        one = functools.partial(grads_of, state, all_gather(state.frozen, config, mesh))
        if microbatches == 1:
            grads, metrics = one(batch)
        else:
            grads, metrics = _accumulate(one, batch, microbatches, mesh)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.learn, value=metrics["loss"]
        )
        learn = cast(Params, optax.apply_updates(state.learn, updates))
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        if tx is None:
            metrics |= {"rate": jnp.asarray(rate(state.step))}
        new = state._replace(
            step=state.step + 1,
            learn=learn,
            ema=_update_ema(config.optimizer.ema_decay, state, learn),
            opt_state=opt_state,
        )
        return jax.lax.with_sharding_constraint(new, parallel.state_shardings(new, mesh)), metrics

    return train_step


def _accumulate(
    grads_of: Callable[[Batch], tuple[Params, Metrics]], batch: Batch, microbatches: int, mesh: Mesh
) -> tuple[Params, Metrics]:
    """Mean gradient and metrics of a batch, accumulated over microbatches."""

    def split(x: Array) -> Array:
        # Microbatch i takes every n-th sample from i on, so that samples stay on their devices.
        x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, parallel.batch_sharding(mesh, axis=1))

    batches = {name: split(x) for name, x in batch.items()}
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(grads_of, {name: x[0] for name, x in batches.items()}),
    )

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grads_of(part)), None

    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda x: x / microbatches, total)


def _update_ema(decay: float, state: TrainState, learn: Params) -> Params:
    """EMA weights; the decay warms up, or they would remember the initial weights."""
    if not decay:
        return {}
    warm = jnp.minimum(decay, (1 + state.step) / (_EMA_WARMUP + state.step))
    return {name: p + warm * (state.ema[name] - p) for name, p in learn.items()}


def make_eval_step(
    config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[TrainState, Batch, Array | None], Metrics]:
    """The jitted function (state, batch, t) -> metrics per sample, each (b,).

    It uses the EMA weights; t (b,) int32 are the times of a latent stage, None draws them.
    The draws depend only on the samples' ids and the run's key.
    """
    stage, inputs_of = Stage.of(config), make_inputs(config, mesh)

    @jax.jit
    def eval_step(state: TrainState, batch: Batch, t: Array | None) -> Metrics:
        model = ema_model(config, graphdef, mesh, state)
        loss, metrics = stage.loss(model, inputs_of(state.key, batch), t)
        return metrics | {"loss": loss}

    return eval_step
