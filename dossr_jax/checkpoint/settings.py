"""Which fields of a configuration may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dossr_jax.config import TrainConfig

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


def differences(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that keep `asked` from resuming a run of `stored`, one phrase per field."""
    ours, theirs = (dict(flat_fields(dataclasses.asdict(config))) for config in (stored, asked))
    return [
        f"{name} is {json.dumps(ours.get(name))} there, {json.dumps(theirs.get(name))} now"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name not in FREE_ON_RESUME
    ]
