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
from dossr_jax.convert.state import Lazy, State, lazy, to_ours, to_torch, zeros
from dossr_jax.convert.tables import (
    CONTROL_PREFIX,
    RRDB_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    release_table,
    text_table,
    unet_table,
    vae_table,
    with_prefix,
)
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels

RRDB = tuple[RRDBConfig, Mapping[str, Lazy]]

# SD's older copies of the UNet's weights; the averaged ones are those in the UNet itself.
_UNUSED_PREFIX = "model_ema."
_CONTEXTS = ("context", "negative_context")
_NORM_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Model:
    """A whole model, not read yet: configuration, tensors under our names, remarks for the user.

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
        """Another model: without names that start with `drop`, with `add`, and config `fields`."""
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if drop is None or not name.startswith(drop)
        }
        tensors.update(add or {})
        notes = self.notes if note is None else (*self.notes, note)
        return Model(dataclasses.replace(self.config, **fields), tensors, notes)


def with_rrdb(model: Model, rrdb: RRDB) -> Model:
    """The same model with another pre-restorer."""
    config, tensors = rrdb
    return model.replace(
        drop="rrdb.", add={f"rrdb.{name}": tensor for name, tensor in tensors.items()}, rrdb=config
    )


def is_release(state: State) -> bool:
    """Whether a checkpoint is a DoSSR one (it has a ControlNet)."""
    return any(name.startswith(CONTROL_PREFIX) for name in state.tensors)


def is_ldm(state: State) -> bool:
    """Whether a checkpoint has an LDM UNet: a DoSSR or an SD one."""
    return any(name.startswith(UNET_PREFIX) for name in state.tensors)


def read_release(
    state: State,
    *,
    config: DoSSRConfig | None = None,
    head_dim: int | None = None,
    rrdb: RRDB | None = None,
) -> Model:
    """A DoSSR checkpoint of the release under our names.

    Args:
      state: the checkpoint.
      config: its configuration; read off the keys where None.
      head_dim: width of an attention head where the configuration is read off the keys.
      rrdb: a pre-restorer that takes the place of the checkpoint's, which may then lack one.

    Raises:
      UserError: listing every missing, extra, doubled and misshapen key.
    """
    buffers, state = _split_buffers(state)
    config = _configure(state, buffers, config, head_dim, with_rrdb=rrdb is None)
    table = release_table(config)
    if rrdb is not None:
        state = state.select(lambda name: not name.startswith(RRDB_PREFIX))
        table = [row for row in table if not row.torch.startswith(RRDB_PREFIX)]
    tensors = to_ours(table, state)
    tensors.update(buffers)
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
    """SD 2.1's single LDM-style file and a pre-restorer as the DoSSR that training starts from.

    Arguments and errors are those of :func:`read_release`.
    """
    unused = sum(name.startswith(_UNUSED_PREFIX) for name in state.tensors)
    buffers, state = _split_buffers(state.select(lambda name: not name.startswith(_UNUSED_PREFIX)))
    config = _configure(state, buffers, config, head_dim, with_rrdb=False)
    table = with_prefix(unet_table(config.unet), UNET_PREFIX, "unet.")
    table += with_prefix(vae_table(config.vae), VAE_PREFIX, "vae.")
    if config.text is not None:
        table += with_prefix(text_table(config.text), TEXT_PREFIX, "text.")
    model = join(config, {**to_ours(table, state), **buffers}, rrdb)
    if unused:
        model = model.replace(note=f"{unused} {_UNUSED_PREFIX}* keys left out: second copies")
    return model


def join(config: DoSSRConfig, tensors: Mapping[str, Lazy], rrdb: RRDB) -> Model:
    """UNet, VAE and pre-restorer as the DoSSR that training starts from.

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
        control[f"control.{name}.kernel"] = zeros((1, 1, c, c), conv_in.dtype)
        control[f"control.{name}.bias"] = zeros((c,), conv_in.dtype)
    config = dataclasses.replace(config, shared_encoder=True)
    return with_rrdb(Model(config, {**tensors, **control}), rrdb)


def _widened(kernel: Lazy) -> Lazy:
    """A kernel (h, w, i, o) with as many zero input channels appended as it has: (h, w, 2i, o)."""
    h, w, i, o = kernel.shape

    def load() -> np.ndarray:
        array = kernel.load()
        return np.concatenate([array, np.zeros_like(array)], axis=2)

    return Lazy((h, w, 2 * i, o), kernel.dtype, load)


def export_release(model: Model) -> dict[str, Lazy]:
    """A model under the release's keys, hint encoder and schedule buffers included.

    Buffers that the model carries go out as they came; those it lacks are computed. Without a
    text tower in the model its keys are left out.

    Raises:
      UserError: the release has no such network.
    """
    config = model.config
    check_release_shape(config)
    if {config.unet.norm_groups, config.vae.norm_groups} != {_NORM_GROUPS}:
        raise UserError(
            f"this model's norms have other than the release's {_NORM_GROUPS} groups: it cannot "
            "be written in that form"
        )
    tensors = {name: tensor for name, tensor in model.tensors.items() if name not in _CONTEXTS}
    if config.shared_encoder:
        tensors.update(
            {
                f"hint_{name.removeprefix('vae.')}": tensor
                for name, tensor in tensors.items()
                if name.startswith("vae.encoder.")
            }
        )
    buffers = {name: lazy(array) for name, array in release_buffers(config.process).items()}
    buffers |= {
        name.removeprefix(weights.BUFFER_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(weights.BUFFER_PREFIX)
    }
    learned = State("the model", tensors).select(
        lambda name: not name.startswith(weights.BUFFER_PREFIX)
    )
    return {**buffers, **to_torch(release_table(config), learned)}


def check_release_shape(config: DoSSRConfig) -> None:
    """Raise UserError where PyTorch's networks have no counterpart of ours."""
    if config.vae.patch_size != 1:
        raise UserError(
            "this model's VAE folds pixels into channels, which PyTorch's has not: it "
            "cannot be written in that form"
        )
    if config.rrdb.upsampler != "nearest":
        raise UserError(
            "this model's pre-restorer enlarges by sub-pixels, which PyTorch's has "
            "not: it cannot be written in that form"
        )
    if config.refiner:
        raise UserError(
            "this model has a refiner, which PyTorch's has not: it cannot be written in that form"
        )
    if config.process.lr_skip:
        raise UserError(
            "this model's predictions have a skip connection from the LR latent, which PyTorch's "
            "have not: it cannot be written in that form"
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
    """A DoSSR checkpoint of the release as a module that is ready to run.

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
    arrays = {name: np.reshape(a, np.shape(a)[-2:]) for name, a in arrays.items()}
    model = model.replace(
        drop=weights.BUFFER_PREFIX,
        add={name: lazy(array) for name, array in arrays.items()},
        context_length=len(arrays["context"]),
    )
    module = weights.abstract_model(model.config, dtype=dtype, param_dtype=param_dtype or dtype)
    tensors = model.tensors
    weights.fill(module, lambda name: tensors[name].load(), set(tensors), str(path))
    return module


def _split_buffers(state: State) -> tuple[dict[str, Lazy], State]:
    """(buffers under our names, the rest); what is no known buffer stays with the rest."""
    known = {*release_buffers(ProcessConfig()), "scale_factor"}
    buffers = {
        f"{weights.BUFFER_PREFIX}{name}": tensor
        for name, tensor in state.tensors.items()
        if name in known
    }
    return buffers, state.select(lambda name: name not in known)


def _configure(
    state: State,
    buffers: Mapping[str, Lazy],
    config: DoSSRConfig | None,
    head_dim: int | None,
    *,
    with_rrdb: bool,
) -> DoSSRConfig:
    text = state.below(TEXT_PREFIX)
    if config is None:
        with config_errors(state.source, "UNet and VAE do not belong together"):
            config = DoSSRConfig(
                unet=infer_unet(state.below(UNET_PREFIX), head_dim),
                vae=infer_vae(state.below(VAE_PREFIX)),
                rrdb=infer_rrdb(state.below(RRDB_PREFIX)) if with_rrdb else RRDBConfig(),
            )
    schedule = State(
        state.source,
        {name.removeprefix(weights.BUFFER_PREFIX): tensor for name, tensor in buffers.items()},
    )
    return dataclasses.replace(
        config,
        process=infer_process(schedule, config.process),
        text=infer_text(text) if text.tensors else None,
    )


def _same_encoders(tensors: Mapping[str, Lazy]) -> bool:
    """Whether the hint encoder equals the VAE's, bit for bit and in its dtypes."""
    prefix = "hint_encoder."
    for name, hint in tensors.items():
        if not name.startswith(prefix):
            continue
        vae = tensors[f"vae.encoder.{name.removeprefix(prefix)}"]
        if vae.dtype != hint.dtype or vae.load().tobytes() != hint.load().tobytes():
            return False
    return True
