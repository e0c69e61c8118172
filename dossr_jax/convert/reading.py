"""Models of every system, read from every kind of file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dossr_jax import systems, weights
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import config_from_release_yaml
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import CONTROL_PREFIX, RRDB_PREFIX, UNET_PREFIX
from dossr_jax.systems import Model
from dossr_jax.systems.dossr import diffusers, release
from dossr_jax.systems.dossr.context import with_context, without_text
from dossr_jax.systems.one_step.keys import ADAPTERS_PREFIX
from dossr_jax.systems.rrdb import read_rrdb
from dossr_jax.weights import CROSSCHECK_FILES, Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a checkpoint of DoSSR or of Stable Diffusion may leave open.

    Attributes:
      rrdb: file of a pre-restorer to add, or to put in place of the checkpoint's.
      config: YAML file of its configuration. head_dim: width of an attention head.
      ema: take the EMA weights.
      variant: which of a system's models it is, where neither keys nor files' names tell.
    """

    rrdb: str | None = None
    config: str | Path | None = None
    head_dim: int | None = None
    ema: bool = False
    variant: str | None = None


def load(path: str | Path, *, dtype: Any = jnp.float32) -> Any:
    """The networks of a model of ours, or of a checkpoint of any system, ready to run.

    Args:
      path: a model file or folder; a checkpoint; a folder with the files of a checkpoint.

    Raises:
      UserError: missing, damaged or of no system, or something that only a conversion can be told.
    """
    model, fill = prepare(path, dtype=dtype)
    fill()
    return model


def prepare(path: str | Path, *, dtype: Any = jnp.float32) -> tuple[Any, Callable[[], None]]:
    """The networks as :func:`load` takes them, of shapes, and what reads the weights into them.

    Raises:
      UserError: as load; from the second, weights that are not finite.
    """
    if systems.is_model(path):
        config, tensors = systems.open_model(path)
    else:
        model = with_prompts(read([Path(path)]), None)
        config, tensors = model.config, model.tensors
    return systems.prepare_model(config, tensors, str(path), dtype=dtype)


def replace_pre_restorer(model: Any, network: Any) -> None:
    """Put another pre-restorer into a model.

    Raises:
      UserError: its system has none.
    """
    system = systems.system_of(model.config)
    if system.pre_restorer is None:
        raise UserError(f"{system.title} has no pre-restorer; leave out --preprocessor")
    setattr(model, system.pre_restorer, network)
    model.config = dataclasses.replace(model.config, **{system.pre_restorer: network.config})


def read(paths: Sequence[Path], options: Options = Options()) -> Model:
    """Read a model from any kind of file or folder; several are the parts of one checkpoint.

    Raises:
      UserError: missing, damaged or foreign files, or ones that do not go together.
    """
    kinds = [weights.kind_of(path) for path in paths]
    if len(paths) == 1 and systems.is_model(paths[0]):
        return _read_own(paths[0], options)
    if kinds == [Kind.DIFFUSERS]:
        return _read_diffusers(paths[0], options)
    states, files = [], []
    for path, kind in zip(paths, kinds, strict=True):
        if kind is Kind.DIFFUSERS:
            states.append(diffusers.read_as_ldm(path))
        elif kind is Kind.CROSSCHECK:
            files.append(path / CROSSCHECK_FILES[0])
            if options.config is None:
                options = dataclasses.replace(options, config=path / CROSSCHECK_FILES[1])
        elif kind in (Kind.PARTS, Kind.HUB):  # of another library, or a part of ours
            files += weights.checkpoints_in(path)
        else:
            files.append(path)
    return _read_states([*states, *map(read_checkpoint, files)], options)


def with_prompts(model: Model, context: str | Path | None, *, keep_text: bool = False) -> Model:
    """A model with the embeddings of its prompts, where its system has prompts."""
    if not hasattr(model.config, "context_length"):
        if context is not None or keep_text:
            title = systems.system_of(model.config).title
            raise UserError(f"{title} reads no prompts; leave out --context and --keep-text")
        return model
    model = with_context(model, context)
    return model if keep_text else without_text(model)


def _read_own(path: Path, options: Options) -> Model:
    if options.config is not None or options.head_dim is not None:
        raise UserError(f"{path}: carries its configuration; leave out --config and --head-dim")
    if options.ema:
        raise UserError(f"{path}: has one set of weights; leave out --ema")
    model = Model(*systems.open_model(path))
    if options.rrdb is None:
        return model
    pair = read_rrdb(options.rrdb)
    if systems.system_of(model.config).pre_restorer != "rrdb":
        raise UserError(f"{path}: has no RRDBNet to put another in place of; leave out --rrdb")
    return release.with_rrdb(model, pair)


def _read_diffusers(path: Path, options: Options) -> Model:
    if options.config is not None or options.head_dim is not None:
        raise UserError(
            f"{path}: has its configuration in config.json files; leave out --config and --head-dim"
        )
    if options.ema:
        raise UserError(f"{path}: has one set of weights; leave out --ema")
    return diffusers.read_diffusers(path, _need_rrdb(str(path), options))


def _read_states(states: Sequence[State], options: Options) -> Model:
    swinir = f"{RRDB_PREFIX}layers."  # DiffBIR's large file has one in place of an RRDBNet
    if len(states) == 1 and states[0].has(CONTROL_PREFIX) and not states[0].has(swinir):
        pair = None if options.rrdb is None else read_rrdb(options.rrdb)
        return release.read_release(states[0], rrdb=pair, **_release_options(options))
    parts = CONTROL_PREFIX, ADAPTERS_PREFIX  # with either of them it is another system's
    if len(states) == 1 and states[0].has(UNET_PREFIX) and not any(map(states[0].has, parts)):
        pair = _need_rrdb(states[0].source, options)
        return release.read_sd(states[0], pair, **_release_options(options))
    system, state = systems.recognise(states)
    if options != Options(variant=options.variant):
        raise UserError(
            f"{state.source}: {system.title}, which takes none of --rrdb, --config, --head-dim and "
            "--ema; leave them out"
        )
    assert system.read is not None
    model = system.read(state, _variant(system, state, options.variant))
    return model if system.licence is None else model.replace(note=system.licence)


def _variant(system: systems.System, state: State, wanted: str | None) -> str | None:
    """The variant that is asked for, or that the files' names speak of."""
    known = ", ".join(system.variants)
    if wanted is not None:
        if wanted not in system.variants:
            raise UserError(
                f"--variant {wanted}: {system.title} has {known or 'none'}; "
                + ("choose one of them" if known else "leave it out")
            )
        return wanted
    if not system.variants:
        return None
    named = [v for v, pattern in system.variants.items() if re.search(pattern, state.source)]
    if len(named) != 1:
        raise UserError(
            f"{state.source}: {system.title}, but the names of the files do not tell which one; "
            f"convert it with --variant, one of {known}"
        )
    return named[0]


def _release_options(options: Options) -> dict[str, Any]:
    config = None if options.config is None else config_from_release_yaml(options.config)
    return {"config": config, "head_dim": options.head_dim, "ema": options.ema}


def _need_rrdb(source: str, options: Options) -> release.RRDB:
    if options.rrdb is None:
        raise UserError(
            f"{source}: an SD model without a pre-restorer; add one with --rrdb FILE or "
            "--rrdb realesrgan"
        )
    return read_rrdb(options.rrdb)
