"""Folders of diffusers (unet/, vae/, controlnet/, text_encoder/, scheduler/), read and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dossr_jax.config import ProcessConfig, SamplerConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import infer_unet, infer_vae, read_settings
from dossr_jax.pytorch.state import State, to_torch
from dossr_jax.pytorch.tables import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Row,
    text_table,
    unet_table,
    vae_table,
)
from dossr_jax.systems.base import Model
from dossr_jax.systems.dossr.diffusers.configs import read_scheduler
from dossr_jax.systems.dossr.diffusers.networks import Part, Source, read_model, read_networks
from dossr_jax.systems.dossr.diffusers.scheduler import CLASS, scheduler_fields
from dossr_jax.systems.dossr.release import RRDB
from dossr_jax.weights import Lazy, read_tensors, write_safetensors

_CONFIG = "config.json"
_SCHEDULER = "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
_STEMS = {"text_encoder": "model"}  # transformers' name for the weights
_OPTIONAL = ("controlnet", "text_encoder")


def read_diffusers(path: Path, rrdb: RRDB) -> Model:
    """Make a DoSSR of a diffusers folder and a pre-restorer.

    Without a ControlNet in the folder it is what training starts from.

    Raises:
      UserError: a part is missing or damaged, or its network is none of SD 2.x.
    """
    parts = ["unet", "vae", *(name for name in _OPTIONAL if (path / name).is_dir())]
    scheduler = path / "scheduler" / _SCHEDULER
    settings = read_settings(scheduler) if scheduler.is_file() else None
    return read_model({name: _read_part(path, name) for name in parts}, settings, rrdb, str(path))


def read_as_ldm(path: Path) -> State:
    """The networks of a folder under the names that SD 2.1's single file gives them.

    Raises:
      UserError: a part is missing or damaged, or its network is none of SD 2.1-base, whose names
        and shapes tell all that a folder says besides.
    """
    names = ["unet", "vae"] + ["text_encoder"] * (path / "text_encoder").is_dir()
    configs, tensors = read_networks({name: _read_part(path, name) for name in names})
    assert configs.unet is not None and configs.vae is not None
    ours = State("the folder", tensors)
    found = _as_ldm(UNET_PREFIX, unet_table(configs.unet), ours.below("unet."))
    found |= _as_ldm(VAE_PREFIX, vae_table(configs.vae), ours.below("vae."))
    if configs.text is not None:
        found |= _as_ldm(TEXT_PREFIX, text_table(configs.text), ours.below("text."))
    state = State(str(path), found)
    told = infer_unet(state.below(UNET_PREFIX), None), infer_vae(state.below(VAE_PREFIX))
    scheduler = path / "scheduler" / _SCHEDULER
    process, note = ProcessConfig(), None
    if scheduler.is_file():
        process, _, note = read_scheduler(read_settings(scheduler))
    if told != (configs.unet, configs.vae) or process != ProcessConfig() or note is not None:
        raise UserError(
            f"{path}: its networks or its schedule are not those of SD 2.1-base, which is needed"
        )
    return state


def _as_ldm(prefix: str, table: Iterable[Row], state: State) -> dict[str, Lazy]:
    return {prefix + name: tensor for name, tensor in to_torch(table, state).items()}


def write_part(folder: Path, part: Part) -> None:
    """Write one sub-folder, whose name is diffusers' name of the network."""
    folder.mkdir()
    _write_json(folder / _CONFIG, part.json)
    stem = _STEMS.get(folder.name, _WEIGHTS)
    # Transformers and diffusers refuse files that do not say which framework they are for.
    write_safetensors(folder / f"{stem}.safetensors", part.tensors, {"format": "pt"})


def write_scheduler(folder: Path, process: ProcessConfig, sampler: SamplerConfig) -> None:
    """Write the sub-folder that dossr_jax.schedulers.DoSSRScheduler loads."""
    folder.mkdir()
    fields = {"_class_name": CLASS, **scheduler_fields(process, sampler)}
    _write_json(folder / _SCHEDULER, fields)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _read_part(path: Path, name: str) -> Source:
    """Read a sub-folder: its config.json, and all tensors of one file, a variant, or shards."""
    folder, stem = path / name, _STEMS.get(name, _WEIGHTS)
    settings = read_settings(folder / _CONFIG)
    index = folder / f"{stem}.safetensors.index.json"
    whole = [folder / f"{stem}{variant}.safetensors" for variant in ("", ".fp16", ".bf16")]
    file = next((file for file in (index, *whole) if file.is_file()), None)
    if file is None:
        raise UserError(f"{folder}: holds no {stem}.safetensors; save the model with safe tensors")
    return Source(settings, State(str(folder), read_tensors(file)[0]))
