"""Configurations: frozen dataclasses that check their values, as JSON."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dossr_jax.errors import UserError

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A value that a configuration cannot have; the message names field, value and remedy."""


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(pydantic.Field,)
)
def configuration(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that refuses wrong values.

    Types are checked strictly (a bool is not an int, a list not a tuple), ranges and choices as
    the annotations say, and what concerns several fields by the class's `__post_init__`. All of
    it raises :class:`ConfigError`.
    """
    options = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=options)(cls)
    checked_init = made.__init__

    def __init__(self: Any, **values: Any) -> None:
        try:
            checked_init(self, **values)
        except ValidationError as error:
            raise ConfigError(_describe(error, made)) from None

    made.__init__ = __init__
    return typing.cast(type[T], made)


def to_json(config: Any) -> str:
    """JSON text of a configuration; :func:`from_json` is its inverse."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(cls: type[T], text: str) -> T:
    """The configuration of class `cls` that :func:`to_json` wrote.

    Raises:
      ConfigError: malformed text, unknown fields or wrong values, in one line.
    """
    try:
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        raise ConfigError(_describe(error, cls)) from None


def _describe(error: ValidationError, cls: type) -> str:
    """One line for all problems of a configuration of class `cls`."""
    return "; ".join(_describe_one(dict(problem), cls) for problem in error.errors())


def _describe_one(problem: dict[str, Any], cls: type) -> str:
    path = ".".join(map(str, problem["loc"]))
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of __post_init__, or of a configuration inside
        return ".".join(filter(None, [path, str(cause)]))
    if problem["type"] == "unexpected_keyword_argument":
        owner: Any = cls
        for parent in problem["loc"][:-1]:
            hint = typing.get_type_hints(owner)[parent]
            owner = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))))
        known = ", ".join(field.name for field in dataclasses.fields(owner))
        return f"{path}: unknown field; {owner.__name__} has {known}"
    if problem["type"] == "missing":
        return f"{path}: missing; give a value"
    reason = problem["msg"].replace("Input should", "must", 1)
    return f"{path} {json.dumps(problem['input'], default=repr)}: {reason}"
