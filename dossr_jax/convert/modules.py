"""Networks of diffusers and transformers in memory as ours, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax.numpy as jnp
import numpy as np

from dossr_jax import systems, weights
from dossr_jax.errors import UserError
from dossr_jax.pytorch import live
from dossr_jax.pytorch.infer import Settings
from dossr_jax.systems import Model
from dossr_jax.systems.dossr import DoSSR, diffusers
from dossr_jax.systems.dossr.context import with_context
from dossr_jax.systems.dossr.diffusers import Networks, Part, Source
from dossr_jax.systems.dossr.release import RRDB
from dossr_jax.systems.rrdb import convert_rrdb, read_rrdb
from dossr_jax.weights import lazy

Embedding = Any  # an array (n, d) or (1, n, d)


class TorchNetworks(NamedTuple):
    """Modules of PyTorch, None for those that are not there.

    `scheduler` is a dossr_jax.schedulers.DoSSRScheduler.
    """

    unet: Any = None
    controlnet: Any = None
    vae: Any = None
    text_encoder: Any = None
    scheduler: Any = None


@overload
def from_diffusers(
    pipeline: Any = None,
    *,
    unet: Any = None,
    vae: Any = None,
    text_encoder: Any = None,
    controlnet: Any = None,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> Networks: ...


@overload
def from_diffusers(
    pipeline: Any = None,
    *,
    unet: Any = None,
    vae: Any = None,
    text_encoder: Any = None,
    controlnet: Any = None,
    scheduler: Any = None,
    rrdb: Any,
    context: Embedding | None = None,
    negative_context: Embedding | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> DoSSR: ...


def from_diffusers(
    pipeline: Any = None,
    *,
    unet: Any = None,
    vae: Any = None,
    text_encoder: Any = None,
    controlnet: Any = None,
    scheduler: Any = None,
    rrdb: Any = None,
    context: Embedding | None = None,
    negative_context: Embedding | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any | None = None,
) -> Networks | DoSSR:
    """Make our modules of live ones of diffusers and transformers, with the same weights.

    With a pre-restorer the result is a whole DoSSR, ready for dossr_jax.Upscaler; without a
    ControlNet it is the one that training starts from. Without a pre-restorer the result is the
    single networks that were given.

    Args:
      pipeline: of diffusers; its networks and scheduler are taken where no other is given.
      unet: UNet2DConditionModel.
      vae: AutoencoderKL.
      text_encoder: CLIPTextModel.
      controlnet: ControlNetModel with the hint of DoSSR, as :func:`to_diffusers` makes it.
      scheduler: tells the noise schedule of a DoSSR, and its sampler if it is a DoSSRScheduler.
      rrdb: pre-restorer: an RRDBNet in PyTorch, an RRDBNet of ours, a file, or "realesrgan".
      context: embedding of DoSSR's prompt, (n, d); by default the text tower computes it.
      negative_context: that of its negative prompt.
      dtype: compute dtype.
      param_dtype: dtype of the parameters; by default each keeps its own, bit for bit.

    Raises:
      UserError: networks that are none of SD 2.x, that do not belong together or are not all that
        a DoSSR needs.
    """
    given = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "controlnet": controlnet}
    modules = {
        name: live.unwrapped(found)
        for name, module in given.items()
        if (found := getattr(pipeline, name, None) if module is None else module) is not None
    }
    if not modules:
        raise UserError(
            f"from_diffusers: {'no networks' if pipeline is None else type(pipeline).__name__}; "
            "give a pipeline, or networks by name: unet=..., vae=..."
        )
    sources = {name: _source(name, module) for name, module in modules.items()}
    options = {"dtype": dtype, "param_dtype": param_dtype}
    if rrdb is None:
        if scheduler is not None or context is not None or negative_context is not None:
            raise UserError(
                "from_diffusers: scheduler and contexts are for a whole DoSSR; give rrdb, too"
            )
        configs, tensors = diffusers.read_networks(sources)
        return diffusers.build_networks(configs, tensors, "from_diffusers", **options)
    if lacking := [name for name in ("unet", "vae") if name not in sources]:
        raise UserError(f"from_diffusers: a DoSSR needs {' and '.join(lacking)}; give them, too")
    scheduler = getattr(pipeline, "scheduler", None) if scheduler is None else scheduler
    settings = None if scheduler is None else _settings("scheduler", scheduler)
    model = diffusers.read_model(sources, settings, _rrdb(rrdb), "from_diffusers")
    model = _with_prompts(model, context, negative_context)
    module = systems.abstract_model(model.config, dtype=dtype, param_dtype=param_dtype or dtype)
    if param_dtype is None:
        weights.keep_dtypes(module, model.tensors)
    weights.fill(module, model.tensors, "from_diffusers")
    return module


@overload
def to_diffusers(model: DoSSR | Networks, folder: None = None) -> TorchNetworks: ...


@overload
def to_diffusers(model: DoSSR | Networks, folder: str | Path) -> None: ...


def to_diffusers(model: DoSSR | Networks, folder: str | Path | None = None) -> TorchNetworks | None:
    """Make modules of diffusers and transformers of ours, or a folder that these load.

    It is the inverse of :func:`from_diffusers`, bit for bit. The ControlNet takes the hint's latent
    as `controlnet_cond`. Of a DoSSR the pre-restorer and the prompt embeddings are left out, and a
    hint encoder that differs from the VAE's.

    Args:
      model: a DoSSR, or single networks.
      folder: write unet/, controlnet/, vae/, text_encoder/ and scheduler/ there, and return
        nothing; it needs neither PyTorch nor diffusers.

    Raises:
      UserError: a network that diffusers does not have, a folder that exists or cannot be written,
        or no diffusers to make modules with (extra `diffusers`).
    """
    config = None
    if isinstance(model, Networks):
        parts = diffusers.export_networks(model.configs, diffusers.tensors_of(model))
    elif isinstance(model, DoSSR):
        config = model.config
        params = weights.names_and_params(model)
        tensors = {name: lazy(np.asarray(param[...])) for name, param in params}
        parts = diffusers.export_model(Model(config, tensors))
    else:
        raise UserError(
            f"to_diffusers: a {type(model).__name__}; give a DoSSR or what from_diffusers returned"
        )
    if folder is None:
        return _as_modules(parts, config)
    path = Path(folder)
    if path.exists():
        raise UserError(f"{path}: exists already; choose another name or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    with weights.new_folder(path) as work:
        for name, part in parts.items():
            diffusers.write_part(work / name, part)
        if config is not None:
            diffusers.write_scheduler(work / "scheduler", config.process, config.sampler)
    return None


def _as_modules(parts: Mapping[str, Part], config: Any) -> TorchNetworks:
    made = {}
    for name, part in parts.items():
        values = dict(part.json)
        kind = values.pop("_class_name", "CLIPTextModel")
        made[name] = live.build_module(kind, values, part.tensors)
    if config is not None:
        from dossr_jax.schedulers import DoSSRScheduler  # it needs diffusers

        fields = diffusers.scheduler_fields(config.process, config.sampler)
        made["scheduler"] = DoSSRScheduler(**fields)
    return TorchNetworks(**made)


def _settings(name: str, module: Any) -> Settings:
    """The configuration of a module, whatever its library stores it as."""
    config = getattr(module, "config", None)
    if config is None:
        raise UserError(f"{name}: a {type(module).__name__}; give a module of diffusers")
    tree = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # A class that is derived from the usual one, as LoRA and compilers make them, may be as good.
    tree.setdefault("_class_name", type(module).__name__)
    return Settings(name, tree)


def _source(name: str, module: Any) -> Source:
    return Source(_settings(name, module), live.state_of(module, name))


def _rrdb(rrdb: Any) -> RRDB:
    if isinstance(rrdb, str | Path):
        return read_rrdb(rrdb)
    if hasattr(rrdb, "state_dict"):
        return convert_rrdb(live.state_of(rrdb, "rrdb"))
    if not hasattr(rrdb, "config"):
        raise UserError(f"rrdb: a {type(rrdb).__name__}; give an RRDBNet or a file of one")
    tensors = {n: lazy(np.asarray(p[...])) for n, p in weights.names_and_params(rrdb)}
    return rrdb.config, tensors


def _with_prompts(
    model: Model, context: Embedding | None, negative_context: Embedding | None
) -> Model:
    if context is None and negative_context is None:
        if model.config.text is None:
            raise UserError(
                "from_diffusers: no text_encoder to embed DoSSR's prompts with; give it, or "
                "context and negative_context"
            )
        return with_context(model, None)
    arrays = [np.asarray(a) for a in (context, negative_context) if a is not None]
    shapes = {a.shape[-2:] for a in arrays}
    width = model.config.unet.context_dim
    if len(arrays) < 2 or len(shapes) > 1 or arrays[0].ndim < 2 or arrays[0].shape[-1] != width:
        found = " and ".join(str(a.shape) for a in arrays)
        raise UserError(
            f"from_diffusers: context and negative_context are {found}; give both as "
            f"(tokens, {width})"
        )
    embeddings = [lazy(a.reshape(a.shape[-2:])) for a in arrays]
    names = ("context", "negative_context")
    return model.replace(
        add=dict(zip(names, embeddings, strict=True)), context_length=embeddings[0].shape[0]
    )
