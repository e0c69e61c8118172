"""Flags for the fields of a configuration, by tyro: types, values, descriptions."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import re
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec

from dossr_jax.config import ConfigError, from_json

T = TypeVar("T")
_MEANT = 3  # flags that a message suggests
_RULER = re.compile(r"^\s*-{5,}\s*$", re.MULTILINE)
_RULES = ConstructorRegistry()
_STYLE = (
    tyro.conf.AvoidSubcommands,  # what may be None stays None or an object
    tyro.conf.FlagConversionOff,  # every flag takes a value: --FIELD=VALUE for all
    tyro.conf.SuppressFixed,
)


def with_flags(config: T, flags: Sequence[str]) -> T:
    """A configuration changed by flags such as ["--data.crop", "256", "--data.presets", "light"].

    Raises:
      ConfigError: an unknown flag, or a value that the field cannot have, in one line.
    """
    # Apart from their values, tyro finds what misspelled flags may have meant.
    parts = [f.split("=", 1) if f.startswith("--") else [f] for f in flags]
    values, said = _parse(config, list(itertools.chain(*parts)))
    if values is None:
        raise ConfigError(_one_line(said))
    return from_json(type(config), json.dumps(values))


def flags_help(config: Any) -> str:
    """The reference of the flags: their types, their values in `config`, and descriptions."""
    said = _parse(config, ["--help"])[1]
    return said[said.index(" options") :]  # behind usage, which the command's own help has


def _parse(config: Any, flags: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """Values of all fields, or None where tyro exits, and what it prints then."""
    said, make = io.StringIO(), typing.cast(Any, type(config))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            values = tyro.cli(make, default=config, args=flags, config=_STYLE, registry=_RULES)
        except SystemExit:
            values = None
    return values, said.getvalue()


@_RULES.struct_rule
def _fields_of(info: Any) -> StructConstructorSpec | None:
    """Fields of a configuration, made a dict: values are checked once all of them are known."""
    if not dataclasses.is_dataclass(info.default) or not hasattr(info.type, "__pydantic_fields__"):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    fields = []
    for name, field in info.type.__pydantic_fields__.items():
        value, hint, text = getattr(info.default, name), hints[name], field.description or ""
        if dataclasses.is_dataclass(value):
            hint, text = type(value), inspect.getdoc(type(value))
        elif typing.get_origin(hint) is Literal and len(typing.get_args(hint)) == 1:
            hint = tyro.conf.Fixed[hint]  # the name of a stage or a system: not a choice
        fields.append(StructFieldSpec(name, hint, value, helptext=text))
    return StructConstructorSpec(lambda **values: values, tuple(fields))


def _one_line(box: str) -> str:
    """The message in the box that tyro prints, between its lines, with the flags it suggests."""
    _, message, *rest = [" ".join(part.split()) for part in _RULER.split(box)]
    message = message.removeprefix("Error parsing ")
    meant = list(dict.fromkeys(re.findall(r"--[\w.-]+", rest[0])))
    if message.startswith("Unrecognized") and 0 < len(meant) <= _MEANT and len(rest) > 1:
        return f"{message}; did you mean {' or '.join(meant)}?"
    return message
