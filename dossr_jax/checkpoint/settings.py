"""What of a configuration may change from one part of a run to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dossr_jax.config import TrainConfig, from_dict, to_json

# Settings that may change from one part of a run to the next.
_FREE = (
    "steps",
    "save_every",
    "keep",
    "validate_every",
    "log_every",
    "data.workers",
    "data.prefetch",
    "parallel",
)
# Settings that a run takes from the model file it starts from.
_FROM_FILE = (
    "model.vae.scale_factor",
    "model.prompt",
    "model.negative_prompt",
    "model.sampler",
    "model.text",
)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_one_of(name: str, fields: tuple[str, ...]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def differences(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """What tells two configurations apart that cannot be parts of one run, a phrase a field."""
    ours, theirs = (dict(_flat(json.loads(to_json(config)))) for config in (stored, asked))
    return [
        f"{name} is {json.dumps(ours.get(name))} there, {json.dumps(theirs.get(name))} now"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and not _is_one_of(name, (*_FREE, *_FROM_FILE))
    ]


def continued(stored: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """The stored configuration with those settings of `asked` that may change."""
    merged, wanted = (json.loads(to_json(config)) for config in (stored, asked))
    for field in _FREE:
        *parents, last = field.split(".")
        into, source = merged, wanted
        for name in parents:
            into, source = into[name], source[name]
        into[last] = source[last]
    return from_dict(TrainConfig, merged)
