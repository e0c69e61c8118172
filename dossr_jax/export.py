"""Trace a model's programs ahead of time, for this machine or for others.

    python -m dossr_jax.export dossr.safetensors --platform cuda --dtype bfloat16
    python -m dossr_jax.export dossr-mini --output programs --sizes 640x480 --batch 4

A start with a program that fits it needs neither to trace nor to lower: it goes on to XLA, whose
own programs are kept in the user's cache folder. Programs are data and depend on the model's
configuration, not on its weights: every model of a configuration shares them. One that does not
fit is left alone, and the start is as if it were not there. No GPU or TPU is needed to trace for
one. On a GPU, bfloat16 attention is cuDNN's where JAX's CUDA plugin is installed here, else XLA's.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax import options
from dossr_jax.commands import command_line, importing
from dossr_jax.errors import UserError
from dossr_jax.pipeline import MODELS

PLATFORMS = ("cpu", "cuda", "tpu")
_DEFAULT_SIDES = (128, 256, 512)  # of results, as the networks make them
_BITS = {8: np.uint8, 16: np.uint16}


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", help=f"{', '.join(MODELS)}, or a file or folder as infer.py takes it"
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: the folder 'programs' beside the model's file or in its "
        "folder, where infer.py looks by itself; elsewhere it needs --programs)",
    )
    parser.add_argument(
        "--platform",
        nargs="+",
        choices=PLATFORMS,
        help="what to trace for (default: what is at hand)",
    )
    options.add_network_options(parser.add_argument_group("model"))
    options.add_sampler_options(parser)
    shapes = parser.add_argument_group(
        "shapes", "A program serves all images of a canvas and a number of them that run together."
    )
    shapes.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        metavar="WxH",
        help="sizes of pictures; larger ones run in tiles (default: the canvases that need none)",
    )
    shapes.add_argument(
        "--batch",
        type=int,
        default=1,
        help="--batch-size of infer.py; smaller groups that are left over have programs, too "
        "(default: %(default)s)",
    )
    shapes.add_argument(
        "--bits",
        nargs="+",
        type=int,
        choices=_BITS,
        default=[8],
        help="per channel; photos with a colour profile other than sRGB are worked on in 16 "
        "(default: 8)",
    )
    options.add_tile_option(shapes)
    return parser


@command_line("stopped; the programs so far are complete")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 for bad input."""
    args = make_parser().parse_args(arguments)
    fields = options.picture_fields(args) | {"batch_size": args.batch}
    with importing():
        import jax

        from dossr_jax.pipeline.upscaler import Upscaler, locate
        from dossr_jax.programs import calling
        from dossr_jax.programs.files import write_program

    output = args.output
    if output is None:
        if args.model in MODELS:
            raise UserError(f"{args.model} comes with the package; say where to write: --output")
        output = calling.folder_of(locate(args.model))
    upscaler = Upscaler.from_pretrained(
        args.model,
        dtype=args.dtype,
        preprocessor=args.preprocessor,
        tile=args.tile,
        devices=jax.local_devices()[:1],
        wait=False,
    )
    options.say_licence(upscaler)
    settings = upscaler.settings(**fields)
    for platform in args.platform or [jax.export.default_export_platform()]:
        for images in _groups(upscaler, args):
            begin = time.perf_counter()
            stored = upscaler.export(images, settings, platform)
            path = write_program(output, _label(images, platform, args.dtype), stored)
            size, seconds = path.stat().st_size / 1e3, time.perf_counter() - begin
            library = "cuDNN" if stored.notes["cudnn"] else "XLA"
            attention = f"  attention of {library}" if platform == "cuda" else ""
            print(f"{path}  {size:.0f} kB  {seconds:.1f} s{attention}", flush=True)
    return 0


def _size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT"."""
    if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)):
        raise argparse.ArgumentTypeError(f"{text!r}: give WIDTHxHEIGHT in pixels, such as 640x480")
    return int(match[2]), int(match[1])


def _groups(upscaler: Any, args: argparse.Namespace) -> Iterator[list[np.ndarray]]:
    """Images that stand for every program, whole canvases."""
    usual = [(side // upscaler.geometry.factor,) * 2 for side in _DEFAULT_SIDES]
    canvases = dict.fromkeys(upscaler.canvas_of(*size) for size in args.sizes or usual)
    for canvas in canvases:
        most = upscaler.capacity(*canvas, args.batch)
        counts = {min(2**i, most) for i in range(most.bit_length() + 1)}
        for bits in args.bits:
            for count in sorted(counts):
                yield [np.zeros((*canvas, 3), _BITS[bits])] * count


def _label(images: Sequence[np.ndarray], platform: str, dtype: str) -> str:
    height, width = images[0].shape[:2]
    bits = 8 * images[0].itemsize
    return f"{platform}-{width}x{height}-{len(images)}-{bits}bit-{dtype}"


if __name__ == "__main__":
    raise SystemExit(main())
