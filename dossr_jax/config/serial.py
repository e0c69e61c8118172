"""Configurations as JSON, and changed field by field."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dossr_jax.config.base import ConfigError, describe

T = TypeVar("T")


def to_json(config: Any) -> str:
    """JSON text of a configuration; :func:`from_json` is its inverse."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(cls: type[T], text: str) -> T:
    """The configuration of class `cls` that :func:`to_json` wrote.

    Raises:
      ConfigError: malformed text, unknown fields or wrong values, in one line.
    """
    try:
        return _adapter(cls).validate_json(text)
    except ValidationError as error:
        raise ConfigError(describe(error, cls)) from None


@functools.cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def with_changes(config: T, changes: Sequence[str]) -> T:
    """A configuration with fields changed by "section.field=value", the value JSON or plain text.

    Raises:
      ConfigError: no such field, or a value that it cannot have.
    """
    values = json.loads(to_json(config))
    for change in changes:
        path, equals, text = change.partition("=")
        *parents, last = path.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not equals or not isinstance(section, dict) or last not in section:
            place = ".".join(parents)
            known = ", ".join(section) if isinstance(section, dict) else "no fields"
            raise ConfigError(
                f"{change}: give FIELD=VALUE of an existing field; {place or 'the run'} has {known}"
            )
        try:
            section[last] = json.loads(text)
        except json.JSONDecodeError:
            section[last] = text
    return from_json(type(config), json.dumps(values))
