"""The release's checkpoints and SD 2.1's single file, both ways, and the first DoSSR from SD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, ProcessConfig, RRDBConfig
from dossr_jax.convert.infer import (
    config_errors,
    config_from_release_yaml,
    infer_process,
    infer_rrdb,
    infer_text,
    infer_unet,
    infer_vae,
)
from dossr_jax.convert.readers import read_checkpoint
from dossr_jax.convert.state import State, to_ours, to_torch
from dossr_jax.convert.tables import (
    RRDB_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    release_table,
)
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels
from dossr_jax.weights import BUFFER_PREFIX, Lazy, lazy

RRDB = tuple[RRDBConfig, Mapping[str, Lazy]]

# SD's second copies of the UNet's weights; the EMA weights are those in the UNet itself.
_UNUSED_PREFIX = "model_ema."
_NORM_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Model:
    """A whole model, not read yet: configuration, tensors under our names, notes for the user.

    `context` and `negative_context` may still be absent; convert.context adds them.
    """

    config: DoSSRConfig
    tensors: dict[str, Lazy]
    notes: tuple[str, ...] = ()

    def replace(
        self,
        *,
        drop: str | None = None,
        add: Mapping[str, Lazy] | None = None,
        note: str | None = None,
        **fields: Any,
    ) -> Model:
        """Drop the names that start with `drop`, add tensors, and change config `fields`."""
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if drop is None or not name.startswith(drop)
        }
        tensors.update(add or {})
        notes = self.notes if note is None else (*self.notes, note)
        return Model(dataclasses.replace(self.config, **fields), tensors, notes)


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
) -> Model:
    """Read a DoSSR checkpoint of the release.

    Args:
      state: the checkpoint.
      config: its configuration; read off the keys where None.
      head_dim: width of an attention head, in place of the configuration's.
      rrdb: a pre-restorer that takes the place of the checkpoint's, which may then lack one.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key.
    """
    config, buffers, state = _prepare(state, config, head_dim, with_rrdb=rrdb is None)
    table = release_table(config)
    if rrdb is not None:
        state = state.select(lambda name: not name.startswith(RRDB_PREFIX))
        table = [row for row in table if not row.torch.startswith(RRDB_PREFIX)]
    tensors = {**to_ours(table, state), **buffers}
    config = dataclasses.replace(config, shared_encoder=_same_encoders(tensors))
    model = Model(config, tensors)
    if config.shared_encoder:
        model = model.replace(drop="hint_encoder.", note="hint encoder equals the VAE's: kept once")
    return model if rrdb is None else with_rrdb(model, rrdb)


def read_sd(
    state: State,
    rrdb: RRDB,
    *,
    config: DoSSRConfig | None = None,
    head_dim: int | None = None,
) -> Model:
    """Make the DoSSR that training starts from of SD 2.1's single file and a pre-restorer.

    Arguments and errors are those of :func:`read_release`.
    """
    unused = sum(name.startswith(_UNUSED_PREFIX) for name in state.tensors)
    state = state.select(lambda name: not name.startswith(_UNUSED_PREFIX))
    config, buffers, state = _prepare(state, config, head_dim, with_rrdb=False)
    parts = ("unet.", "vae.", "text.")
    table = [row for row in release_table(config) if row.ours.startswith(parts)]
    model = join(config, {**to_ours(table, state), **buffers}, rrdb)
    if unused:
        model = model.replace(note=f"{unused} {_UNUSED_PREFIX}* keys left out: second copies")
    return model


def _prepare(
    state: State, config: DoSSRConfig | None, head_dim: int | None, *, with_rrdb: bool
) -> tuple[DoSSRConfig, dict[str, Lazy], State]:
    """Split a checkpoint: (its configuration, buffers under our names, the other tensors)."""
    known = {*release_buffers(ProcessConfig()), "scale_factor"}
    buffers = state.select(lambda name: name in known)
    state = state.select(lambda name: name not in known)
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
    config = dataclasses.replace(
        config,
        process=infer_process(buffers, config.process),
        text=infer_text(state.below(TEXT_PREFIX)) if state.has(TEXT_PREFIX) else None,
    )
    return config, {f"{BUFFER_PREFIX}{name}": t for name, t in buffers.tensors.items()}, state


def _same_encoders(tensors: Mapping[str, Lazy]) -> bool:
    """Tell whether the hint encoder equals the VAE's, bit for bit and in its dtypes."""
    for name, hint in tensors.items():
        if name.startswith("hint_encoder."):
            vae = tensors[name.replace("hint_", "vae.", 1)]
            if vae.dtype != hint.dtype or vae.load().tobytes() != hint.load().tobytes():
                return False
    return True


def join(config: DoSSRConfig, tensors: Mapping[str, Lazy], rrdb: RRDB) -> Model:
    """Make the DoSSR that training starts from of UNet, VAE and pre-restorer.

    The ControlNet gets the UNet's encoder and middle; its first convolution sees the hint through
    zeros, and its outputs pass through zeros, so that at first it changes nothing.
    """
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
    config = dataclasses.replace(config, shared_encoder=True)
    return with_rrdb(Model(config, {**tensors, **control}), rrdb)


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
      context, negative_context: embeddings of the two stored prompts, (n, d) or (1, n, d).
      dtype: compute dtype. param_dtype: dtype of the parameters, `dtype` if None.

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
    module = weights.abstract_model(model.config, dtype=dtype, param_dtype=param_dtype or dtype)
    weights.fill(module, model.tensors, str(path))
    return module
