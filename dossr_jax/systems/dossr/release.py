"""The release's checkpoints and SD 2.1's single file, both ways, and the first DoSSR from SD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, RRDBConfig
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels
from dossr_jax.pytorch.infer import (
    config_errors,
    config_from_release_yaml,
    infer_process,
    infer_rrdb,
    infer_text,
    infer_unet,
    infer_vae,
)
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import (
    RRDB_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    release_table,
)
from dossr_jax.systems.base import Model
from dossr_jax.systems.files import BUFFER_PREFIX
from dossr_jax.systems.sd21 import EMA_PREFIX, split_buffers
from dossr_jax.weights import Lazy, lazy

RRDB = tuple[RRDBConfig, Mapping[str, Lazy]]

# LDM stores EMA weights of the parameters below `model.` that it trains, without the dots of their
# names, and two numbers of its own.
_EMA_OF = "model."
_EMA_STATE = ("decay", "num_updates")
_NORM_GROUPS = 32


def with_rrdb(model: Model, rrdb: RRDB) -> Model:
    """Put another pre-restorer into a model."""
    config, tensors = rrdb
    return model.replace(
        drop="rrdb.", add={f"rrdb.{name}": tensor for name, tensor in tensors.items()}, rrdb=config
    )


def read_release(
    state: State,
    *,
    config: DoSSRConfig | None = None,
    head_dim: int | None = None,
    rrdb: RRDB | None = None,
    ema: bool = False,
) -> Model:
    """Read a DoSSR checkpoint of the release.

    Args:
      state: the checkpoint.
      config: its configuration; read off the keys where None.
      head_dim: width of an attention head, in place of the configuration's.
      rrdb: a pre-restorer that takes the place of the checkpoint's, which may then lack one.
      ema: take the EMA weights where the checkpoint has them beside the plain ones.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key; or no EMA weights.
    """
    state, ema_note = _choose_ema(state, ema)
    config, buffers, state, notes = _prepare(state, config, head_dim, with_rrdb=rrdb is None)
    table = release_table(config)
    if rrdb is not None:
        state = state.select(lambda name: not name.startswith(RRDB_PREFIX))
        table = [row for row in table if not row.torch.startswith(RRDB_PREFIX)]
    tensors = {**to_ours(table, state), **buffers}
    config = dataclasses.replace(config, shared_encoder=_same_encoders(tensors))
    model = Model(config, tensors, (*ema_note, *notes))
    if config.shared_encoder:
        model = model.replace(drop="hint_encoder.", note="hint encoder equals the VAE's: kept once")
    return model if rrdb is None else with_rrdb(model, rrdb)


def read_sd(
    state: State,
    rrdb: RRDB,
    *,
    config: DoSSRConfig | None = None,
    head_dim: int | None = None,
    ema: bool = False,
) -> Model:
    """Make the DoSSR that training starts from of SD 2.1's single file and a pre-restorer.

    Arguments and errors are those of :func:`read_release`.
    """
    state, ema_note = _choose_ema(state, ema)
    config, buffers, state, notes = _prepare(state, config, head_dim, with_rrdb=False)
    parts = ("unet.", "vae.", "text.")
    table = [row for row in release_table(config) if row.ours.startswith(parts)]
    model = join(config, {**to_ours(table, state), **buffers}, rrdb)
    return dataclasses.replace(model, notes=(*ema_note, *notes))


def _choose_ema(state: State, ema: bool) -> tuple[State, tuple[str, ...]]:
    """Keep the plain weights or the EMA weights: (the checkpoint with those, notes for the user).

    Parameters without EMA weights were not trained and keep the plain ones.
    """
    stored = state.below(EMA_PREFIX)
    copies = stored.select(lambda name: name not in _EMA_STATE).tensors
    plain = state.select(lambda name: not name.startswith(EMA_PREFIX))
    if ema and not copies:
        raise UserError(f"{state.source}: has no EMA weights ({EMA_PREFIX}*); leave out --ema")
    if not ema:
        count = len(stored.tensors)
        note = f"{count} {EMA_PREFIX}* keys left out: EMA weights, which --ema takes instead"
        return plain, (note,) if count else ()
    copy_of = {
        name: name.removeprefix(_EMA_OF).replace(".", "")
        for name in plain.tensors
        if name.startswith(_EMA_OF)
    }
    strange = sorted(set(copies) - set(copy_of.values()))
    if strange:
        raise UserError(
            f"{state.source}: {len(strange)} EMA weights belong to no parameter ({EMA_PREFIX}"
            f"{strange[0]}, ...); take the plain ones, without --ema"
        )
    tensors = {name: copies.get(copy_of.get(name, ""), t) for name, t in plain.tensors.items()}
    note = f"{len(copies)} EMA weights ({EMA_PREFIX}*) taken in place of the plain ones"
    return State(state.source, tensors, state.doubled), (note,)


class _Parts(NamedTuple):
    config: DoSSRConfig
    buffers: dict[str, Lazy]  # under our names
    others: State
    notes: tuple[str, ...]


def _prepare(
    state: State, config: DoSSRConfig | None, head_dim: int | None, *, with_rrdb: bool
) -> _Parts:
    """Split a checkpoint into its configuration, its buffers and all other tensors."""
    buffers, state = split_buffers(state)
    if config is None:
        with config_errors(state.source, "UNet and VAE do not belong together"):
            config = DoSSRConfig(
                unet=infer_unet(state.below(UNET_PREFIX), head_dim),
                vae=infer_vae(state.below(VAE_PREFIX)),
                rrdb=infer_rrdb(state.below(RRDB_PREFIX)) if with_rrdb else RRDBConfig(),
            )
    elif head_dim is not None:
        unet = dataclasses.replace(config.unet, head_dim=head_dim)
        config = dataclasses.replace(config, unet=unet)
    with config_errors(state.source, "take betas and lambdas out of it: they are computed"):
        process = infer_process(buffers, config.process)
    text = infer_text(state.below(TEXT_PREFIX)) if state.has(TEXT_PREFIX) else None
    config = dataclasses.replace(config, process=process, text=text)
    named = {f"{BUFFER_PREFIX}{name}": t for name, t in buffers.tensors.items()}
    return _Parts(config, named, state, _warn_of_coarse(buffers))


def _warn_of_coarse(buffers: State) -> tuple[str, ...]:
    kinds = {str(t.dtype) for t in buffers.tensors.values() if t.dtype.itemsize < 4}
    if not kinds:
        return ()
    return (
        f"WARNING: its schedule constants are stored in {' and '.join(sorted(kinds))} only: exact "
        "ones are computed in their place, and the stored ones kept for writing back",
    )


def _same_encoders(tensors: Mapping[str, Lazy]) -> bool:
    """Tell whether the hint encoder equals the VAE's, bit for bit and in its dtypes."""
    for name, hint in tensors.items():
        if name.startswith("hint_encoder."):
            vae = tensors[name.replace("hint_", "vae.", 1)]
            if vae.dtype != hint.dtype or vae.load().tobytes() != hint.load().tobytes():
                return False
    return True


def join(config: DoSSRConfig, tensors: Mapping[str, Lazy], rrdb: RRDB) -> Model:
    """Make a DoSSR of UNet, VAE, a pre-restorer, and the ControlNet if there is one.

    Without one it is what training starts from: the ControlNet gets the UNet's encoder and middle;
    its first convolution sees the hint through zeros, and its outputs pass through zeros, so that
    at first it changes nothing.
    """
    config = dataclasses.replace(config, shared_encoder=True)
    if not any(name.startswith("control.") for name in tensors):
        tensors = {**tensors, **_first_control(config, tensors)}
    return with_rrdb(Model(config, dict(tensors)), rrdb)


def _first_control(config: DoSSRConfig, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    control = {
        f"control.{name.removeprefix('unet.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("unet.encoder.")
    }
    conv_in = control["control.encoder.conv_in.kernel"]
    control["control.encoder.conv_in.kernel"] = _widened(conv_in)
    channels = encoder_channels(config.unet)
    ends = {f"zero_convs.{i}": c for i, c in enumerate(channels)} | {"zero_mid": channels[-1]}
    for name, c in ends.items():
        control[f"control.{name}.kernel"] = _zeros((1, 1, c, c), conv_in.dtype)
        control[f"control.{name}.bias"] = _zeros((c,), conv_in.dtype)
    return control


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
    return Lazy(shape, dtype, lambda: np.zeros(shape, dtype))


def _widened(kernel: Lazy) -> Lazy:
    """Append as many zero input channels as a kernel has: (h, w, i, o) -> (h, w, 2i, o)."""
    h, w, i, o = kernel.shape

    def load() -> np.ndarray:
        array = kernel.load()
        return np.concatenate([array, np.zeros_like(array)], axis=2)

    return Lazy((h, w, 2 * i, o), kernel.dtype, load)


def export_release(model: Model) -> dict[str, Lazy]:
    """Bring a model under the release's keys, hint encoder and schedule buffers included.

    Buffers that the model carries go out as they came; those it lacks are computed. Without a
    text tower in the model its keys are left out.

    Raises:
      UserError: the release has no such network.
    """
    config = model.config
    check_release_shape(config)
    if {config.unet.norm_groups, config.vae.norm_groups} != {_NORM_GROUPS}:
        raise UserError(
            f"this model cannot be written in that form: its norms have other than the release's "
            f"{_NORM_GROUPS} groups"
        )
    buffers = {name: lazy(array) for name, array in release_buffers(config.process).items()}
    learned = {}
    for name, tensor in model.tensors.items():
        if name.startswith(BUFFER_PREFIX):
            buffers[name.removeprefix(BUFFER_PREFIX)] = tensor
        elif name not in ("context", "negative_context"):
            learned[name] = tensor
        if config.shared_encoder and name.startswith("vae.encoder."):
            learned[name.replace("vae.", "hint_", 1)] = tensor
    return {**buffers, **to_torch(release_table(config), State("the model", learned))}


def check_release_shape(config: DoSSRConfig) -> None:
    """Raise UserError where PyTorch's networks have no counterpart of ours."""
    if config.vae.patch_size != 1:
        raise UserError(
            "this model cannot be written in that form: its VAE folds pixels into channels, and "
            "PyTorch's networks have nothing of the kind"
        )


def load_release(
    path: str | Path,
    config: DoSSRConfig | str | Path,
    *,
    context: np.ndarray,
    negative_context: np.ndarray,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> DoSSR:
    """Load a DoSSR checkpoint of the release as a module that is ready to run.

    Args:
      path: the checkpoint.
      config: its configuration or the YAML file with it.
      context: embedding of the stored prompt, (n, d) or (1, n, d).
      negative_context: that of the stored negative prompt.
      dtype: compute dtype.
      param_dtype: dtype of the parameters, `dtype` if None.

    Raises:
      UserError: a damaged file, or one that does not fit its configuration.
    """
    if not isinstance(config, DoSSRConfig):
        config = config_from_release_yaml(config)
    model = read_release(read_checkpoint(path), config=config)
    arrays = {"context": context, "negative_context": negative_context}
    embeddings = {name: lazy(np.reshape(a, np.shape(a)[-2:])) for name, a in arrays.items()}
    length = embeddings["context"].shape[0]
    model = model.replace(drop=BUFFER_PREFIX, add=embeddings, context_length=length)
    module = weights.make_abstract(
        lambda rngs: DoSSR(model.config, dtype=dtype, param_dtype=param_dtype or dtype, rngs=rngs)
    )
    weights.fill(module, model.tensors, str(path))
    return module
