"""Options of restoration that several command lines share, derived from the configurations."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dossr_jax.commands import importing
from dossr_jax.compilation import keep_programs
from dossr_jax.config import SAMPLERS, SamplerConfig
from dossr_jax.pipeline import DEFAULT_TILE, MODELS, Settings, make_settings
from dossr_jax.pipeline.settings import DTYPE_NAMES

if TYPE_CHECKING:
    from dossr_jax.pipeline import Upscaler

_SAMPLER = tuple(field.name for field in dataclasses.fields(SamplerConfig))
# The other fields of Settings are for comparisons, from Python.
_PICTURE = (
    "scale",
    "seed",
    "prompt",
    "negative_prompt",
    "strength",
    "pixel_scale",
    "semantic_scale",
)


def add_options(
    parser: argparse.ArgumentParser, *, default_model: str | None, several: str | None = None
) -> None:
    """Flags for :func:`load`, and for the fields of Settings and of its sampler.

    `several`: --model may be repeated and gives a list, None by default; what for.
    """
    more = f", {several} where it is repeated" if several else ""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=None if several else default_model,
        action="append" if several else "store",
        help=f"{', '.join(MODELS)} (installed with the package; the last two are fast and without "
        "diffusion, for photos and for drawings), or a file or folder that "
        f"'python -m dossr_jax.convert' wrote{more} (default: {default_model or 'none'})",
    )
    add_network_options(model)
    model.add_argument(
        "--tokenizer", type=Path, help="folder with vocab.json and merges.txt, for free prompts"
    )
    add_sampler_options(parser)
    picture = parser.add_argument_group("picture")
    for name in _PICTURE:
        _add_field(picture, Settings, name)
    speed = parser.add_argument_group(
        "memory and speed",
        "A photo takes about 2 GB per million of its pixels, and no more than 2 GB beside its\n"
        "result: larger ones are restored block by block. Where memory is short, less runs at a\n"
        "time, and a note says so: first smaller batches, then smaller blocks, then smaller tiles.",
    )
    add_tile_option(speed)
    _add_field(speed, Settings, "batch_size", type=_number_or_auto)
    speed.add_argument(
        "--programs",
        metavar="FOLDER",
        type=Path,
        help="where 'python -m dossr_jax.export' wrote programs (default: 'programs' beside the "
        "model's file, or in its folder, if there is one)",
    )
    speed.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="compile anew; by default programs are kept in the user's cache folder, or in "
        "JAX_COMPILATION_CACHE_DIR, and the next start is quick",
    )


def add_network_options(group: Any) -> None:
    """Flags for what a model is built of, besides its name."""
    group.add_argument(
        "--preprocessor",
        help="another pre-restorer: an RRDBNet file (Real-ESRGAN, BSRGAN, ...), 'realesrgan' or "
        "'realesrgan-anime'",
    )
    group.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="float32", help="arithmetic (default: float32)"
    )


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Flags for the fields of a sampler."""
    sampler = parser.add_argument_group(
        "sampler",
        "By default as stored with the model; a converted checkpoint is sampled as published, in\n"
        "5 steps of the third-order SDE solver.",
    )
    sampler.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default=argparse.SUPPRESS,
        help="a sampler by name; the flags below change parts of it. published: order 3, solver "
        "sde, grid uniform; asinh: order 2, solver asinh, grid asinh, for 3 to 10 steps",
    )
    for name in _SAMPLER:
        _add_field(sampler, SamplerConfig, name)


def add_tile_option(group: Any) -> None:
    """The flag for the side of tiles."""
    group.add_argument(
        "--tile",
        type=_number_or_auto,
        help="side of a tile in pixels of what the networks make, 0 for none; auto: "
        f"{DEFAULT_TILE}, or less where memory is short (default: auto)",
    )


def _number_or_auto(text: str) -> int | None:
    return None if text == "auto" else int(text)


_number_or_auto.__name__ = "number"  # in argparse's message


def _add_field(group: Any, cls: type, name: str, **changed: Any) -> None:
    """A flag for a field of a configuration: type, choices and help are the field's."""
    field = vars(cls)["__pydantic_fields__"][name]
    options: dict[str, Any] = {"type": _type_of(field.annotation), **changed}
    if options["type"] is bool:
        options = {"action": argparse.BooleanOptionalAction}
    elif typing.get_origin(field.annotation) is Literal:
        options["choices"] = typing.get_args(field.annotation)
    text = (field.description or "").replace("%", "%%")
    default = "what the model was made for, 4 or 1" if name == "scale" else field.default
    if cls is Settings and default is not None:
        text += f" (default: {default})"
    flag = f"--{name.replace('_', '-')}"
    group.add_argument(flag, default=argparse.SUPPRESS, help=text, **options)


def _type_of(hint: Any) -> type:
    """The type that a flag's text is read as: a union's first, that of a Literal's values."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union, typing.Annotated):
        return _type_of(typing.get_args(hint)[0])
    return type(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else hint


def picture_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask for, as :func:`dossr_jax.pipeline.make_settings` takes it.

    Raises:
      ConfigError: a value that a field cannot have.
    """
    names = ("sampler", *_SAMPLER, *_PICTURE, "batch_size")
    fields = {name: value for name, value in vars(args).items() if name in names}
    make_settings(SamplerConfig(), **fields)
    return fields


def load(
    args: argparse.Namespace, *, model: str | None = None, preprocessor: str | None = None
) -> Upscaler:
    """The model that parsed options ask for.

    Args:
      model, preprocessor: in place of theirs, if given.

    Raises:
      UserError: what is wrong with its file, in one line.
    """
    with importing():
        from dossr_jax.pipeline import Upscaler  # here: --help needs no networks
        from dossr_jax.pipeline.memory import share_freed_memory

    share_freed_memory()
    keep = keep_programs() if args.cache else None
    upscaler = Upscaler.from_pretrained(
        args.model if model is None else model,
        dtype=args.dtype,
        preprocessor=args.preprocessor if preprocessor is None else preprocessor,
        tile=args.tile,
        tokenizer_dir=args.tokenizer,
        programs=args.programs,
        keep=keep,
        wait=False,
    )
    say_licence(upscaler)
    return upscaler


def say_licence(upscaler: Upscaler) -> None:
    """Say on stderr what a model's licence does not allow, if there is such a thing."""
    if upscaler.system.licence is not None:
        print(f"note: {upscaler.system.licence}", file=sys.stderr)
