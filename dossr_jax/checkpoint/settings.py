"""Which fields of a configuration may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dossr_jax.config import (
    ConfigError,
    ModelConfig,
    TrainConfig,
    from_json,
    read_model_config,
    to_json,
)
from dossr_jax.errors import UserError

# Every other field changes the numbers of a run and is refused on resume.
FREE_ON_RESUME = (
    "steps",
    "save_every",
    "keep",
    "validate_every",
    "log_every",
    "data.workers",
    "data.prefetch",
    "parallel.fsdp",
    "parallel.dtype",
    "parallel.frozen_dtype",
    "parallel.remat",
)


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Saved(NamedTuple):
    """A restored checkpoint: the whole training state, and the two records beside it."""

    state: Any
    data: dict[str, Any]
    log: dict[str, Any]


def stored_config(asked: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """What a checkpoint says of its run: the configuration, and the model that is trained."""
    return {"asked": json.loads(to_json(asked)), "model": json.loads(to_json(model))}


def resume_config(stored: Mapping[str, Any], asked: TrainConfig, checkpoint: Path) -> TrainConfig:
    """The configuration to resume with: `asked`, with the model that the run started from.

    Args:
      stored: by :func:`stored_config`, in the folder `checkpoint`.

    Raises:
      UserError: another version wrote the checkpoint, or the run was started with another
        configuration; names every field that differs.
    """
    try:
        before = from_json(TrainConfig, json.dumps(stored["asked"]))
        model = read_model_config(json.dumps(stored["model"]))
    except (ConfigError, KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint}: its configuration cannot be read ({error}); resume with the version "
            "that wrote it, or choose another output folder"
        ) from error
    different = differences(before, asked)
    if different:
        raise UserError(
            f"{checkpoint.parent}: holds a run of another configuration ({'; '.join(different)}); "
            "resume with the configuration it has, or choose another output folder"
        )
    return dataclasses.replace(asked, model=model)


def differences(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that keep `asked` from resuming a run of `stored`, one phrase per field."""
    ours, theirs = (dict(flat_fields(dataclasses.asdict(config))) for config in (stored, asked))
    return [
        f"{name} is {json.dumps(ours.get(name))} there, {json.dumps(theirs.get(name))} now"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name not in FREE_ON_RESUME
    ]
