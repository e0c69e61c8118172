"""The pure training step and its twin that only measures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dossr_jax import parallel
from dossr_jax.config import TrainConfig
from dossr_jax.training.inputs import Batch, make_inputs
from dossr_jax.training.params import Params, all_gather, build, ema_model
from dossr_jax.training.stages.base import Metrics, Stage
from dossr_jax.training.state import TrainState, learning_rate, make_optimizer

_EMA_WARMUP = 10
# XLA removes on a CPU what keeps recomputed and first computation apart, and then merges the two.
_CPU_REMAT = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def make_train_step(
    config: TrainConfig, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step (state, batch) -> (state, metrics), jitted; it donates the state.

    A batch is what dossr_jax.data.pipeline yields, as global arrays. Metrics are means over it:
    `loss`, those of the stage, `grad_norm` before clipping and the learning `rate`.
    """
    stage = Stage.of(config)
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = learning_rate(config.optimizer, config.steps)
    microbatches = config.optimizer.microbatches

    def grads_of(
        state: TrainState, frozen: Params, key: Array, batch: Batch
    ) -> tuple[Params, Metrics]:
        """Gradient of the mean loss of a batch, and its metrics."""

        def mean_loss(learn: Params) -> tuple[Array, Metrics]:
            model = build(graphdef, {**frozen, **all_gather(learn, config, mesh)})
            loss, metrics = stage.loss(model, make_inputs(config, mesh, key)(batch), None)
            return jnp.mean(loss), {k: jnp.mean(v) for k, v in metrics.items()} | {
                "loss": jnp.mean(loss)
            }

        grads, metrics = jax.grad(mean_loss, has_aux=True)(state.learn)
        return jax.lax.with_sharding_constraint(
            grads, parallel.state_shardings(grads, mesh)
        ), metrics

    recomputes_on_cpu = config.parallel.remat != "none" and mesh.devices.flat[0].platform == "cpu"
    options = _CPU_REMAT if recomputes_on_cpu else None

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
        frozen = all_gather(state.frozen, config, mesh)
        one = functools.partial(grads_of, state, frozen, key)
        if microbatches == 1:
            grads, metrics = one(batch)
        else:
            grads, metrics = _accumulate(one, batch, microbatches, mesh)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.learn)
        learn = cast(Params, optax.apply_updates(state.learn, updates))
        metrics |= {"grad_norm": optax.tree.norm(grads), "rate": jnp.asarray(rate(state.step))}
        new = TrainState(
            step=state.step + 1,
            key=state.key,
            learn=learn,
            ema=_update_ema(config.optimizer.ema_decay, state, learn),
            opt_state=opt_state,
            frozen=state.frozen,
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
    """The jitted function (state, batch, t) -> metrics of every sample, each (b,).

    It uses the EMA weights; t (b,) int32 are the times of a latent stage, None draws them.
    The draws depend only on the samples' ids and the run's key.
    """
    stage = Stage.of(config)

    @jax.jit
    def eval_step(state: TrainState, batch: Batch, t: Array | None) -> Metrics:
        key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
        model = ema_model(config, graphdef, mesh, state)
        loss, metrics = stage.loss(model, make_inputs(config, mesh, key)(batch), t)
        return metrics | {"loss": loss}

    return eval_step
