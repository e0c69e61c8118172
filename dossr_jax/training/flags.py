"""What the command lines that take a configuration share: its name, and flags for its fields."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dossr_jax.errors import require_extra
from dossr_jax.training.experiments import load_config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that takes a configuration and flags for its fields."""
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="show this help and exit; behind a configuration also --FIELD of all its fields",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="one of configs/, or a .py file that sets CONFIG; NAME may also come first, alone",
    )
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="another spelling of --FIELD VALUE",
    )


def read_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """What a parser with these options reads; `flags` has what is meant for the fields."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")
    args, flags = parser.parse_known_args(words)
    args.flags = [*(f"--{change}" for change in args.set), *flags]
    return args


def full_help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """A command's help, and that of all fields of the configuration that it was asked for."""
    text = parser.format_help()
    if args.config:
        config = load_config(args.config, args.flags)
        require_extra("train", "tyro")
        from dossr_jax.training.fields import flags_help

        text += f"\nfields of the configuration {args.config}:\n{flags_help(config)}"
    return text
