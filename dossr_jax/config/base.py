"""Configurations: frozen dataclasses whose values are checked where they are made."""

from __future__ import annotations

import json
import typing
from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict, ValidationError

from dossr_jax.errors import UserError

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A value that a configuration cannot have; the message names field, value and remedy."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
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
            raise ConfigError(describe(error, made)) from None

    made.__init__ = __init__
    return typing.cast(type[T], made)


def describe(error: ValidationError, cls: type) -> str:
    """One line for all problems of a configuration of class `cls`."""
    return "; ".join(_describe(dict(problem), cls) for problem in error.errors())


def _describe(problem: dict[str, Any], cls: type) -> str:
    path = ".".join(map(str, problem["loc"]))
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of __post_init__, or of a configuration inside
        return ".".join(filter(None, [path, str(cause)]))
    if problem["type"] == "unexpected_keyword_argument":
        *parents, name = problem["loc"]
        owner = cls
        for parent in parents:
            owner = _field_type(owner, str(parent))
        known = ", ".join(getattr(owner, "__dataclass_fields__", {}))
        return f"{path}: unknown field; {getattr(owner, '__name__', owner)} has {known}"
    if problem["type"] == "missing":
        return f"{path}: missing; give a value"
    reason = problem["msg"].replace("Input should", "must", 1)
    return f"{path} {_shown(problem['input'])}: {reason}"


def _field_type(cls: type, name: str) -> Any:
    return typing.get_type_hints(cls).get(name, cls)


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)
