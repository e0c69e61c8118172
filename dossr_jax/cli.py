"""Command line of restoration: files and folders in, enlarged images out."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dossr_jax import image_io, options
from dossr_jax.errors import BAD_INPUT, UserError, command_line
from dossr_jax.image_io import InputImage
from dossr_jax.pipeline import Restored, Settings, Upscaler

_EXAMPLES = """\
examples:
  python infer.py photo.jpg --output restored
  python infer.py album/ more/*.png --output restored --scale 2 --batch-size 4
  python infer.py photo.jpg --output restored --model dossr.safetensors --dtype bfloat16
  python infer.py photo.jpg --output restored --start noise --order 1 --steps 50

Results keep the name of their input and, below a folder, its place. exit status: 0 all restored,
2 something could not be read, written or understood (the rest is restored all the same).
"""

# Fields of Restored that --save-stages saves under their names.
_STAGES = ("pre_restored", "decoded")


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        description="Restore and enlarge photos with a DoSSR model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", nargs="+", help="image files, and folders with images in them")
    parser.add_argument("--output", "-o", required=True, type=Path, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument(
        "--format",
        choices=("same", "png", "jpg", "webp"),
        default="png",
        help="file format of the results, 'same' as the input's (default: png, lossless)",
    )
    parser.add_argument(
        "--save-stages",
        action="store_true",
        help="also save the pre-restored image and the decoded one before the colour fix",
    )
    options.add_options(parser, default_model="dossr-mini")
    return parser


@command_line("stopped; results so far are complete")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0, or 2 if anything could not be read, written or understood.
    """
    args = make_parser().parse_args(arguments)
    fields = options.picture_fields(args)
    inputs = image_io.find_images(args.input, exclude=args.output)
    targets = _targets(inputs, args.output, args.format, stages=args.save_stages)
    image_io.check_folder(args.output)
    begin = time.perf_counter()
    upscaler = options.load(args)
    loaded = time.perf_counter() - begin
    settings = upscaler.settings(**fields)
    seconds, failed = _restore_all(upscaler, settings, inputs, targets, args)
    parts = [f"{len(seconds)} restored into {args.output}"]
    if seconds:
        parts.append(
            f"median {statistics.median(seconds):.1f} s per image, {sum(seconds):.1f} s in total, "
            "including compilation"
        )
    if kept := len(inputs) - len(seconds) - failed:
        parts.append(f"{kept} kept")
    if failed:
        parts.append(f"{failed} failed")
    print("; ".join(parts) + f" (model loaded in {loaded:.1f} s)")
    return BAD_INPUT if failed else 0


def _targets(
    inputs: Sequence[InputImage], output: Path, format_: str, *, stages: bool
) -> dict[Path, Path]:
    """Input file -> output file; an output for two inputs or in place of one is an error."""
    targets: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    originals = {os.path.realpath(item.path) for item in inputs}
    for item in inputs:
        suffix = item.relative.suffix if format_ == "same" else f".{format_}"
        target = targets[item.path] = output / item.relative.with_suffix(suffix)
        for file in (target, *(_stage_file(target, name) for name in _STAGES if stages)):
            if os.path.realpath(file) in originals:
                raise UserError(
                    f"{item.path}: its result would take the place of {file}, which is to be "
                    "restored as well; choose another output folder"
                )
            if file in owners:
                raise UserError(
                    f"{item.path}: would be written to {file}, as {owners[file]}; rename one or "
                    "restore them into different folders"
                )
            owners[file] = item.path
    return targets


def _stage_file(target: Path, stage: str) -> Path:
    return target.with_name(f"{target.stem}_{stage}{target.suffix}")


def _restore_all(
    upscaler: Upscaler,
    settings: Settings,
    inputs: Sequence[InputImage],
    targets: dict[Path, Path],
    args: argparse.Namespace,
) -> tuple[list[float], int]:
    """Restore and save everything; returns the seconds of every result, the number of failures."""
    seconds, failed = [], 0
    with tqdm(total=len(inputs), unit="image", dynamic_ncols=True) as bar:

        def fail(error: UserError | str) -> None:
            nonlocal failed
            failed += 1
            bar.write(f"error: {error}", file=sys.stderr)
            bar.update()

        def readable() -> Iterator[tuple[Path, np.ndarray]]:
            for item in inputs:
                if targets[item.path].exists() and not args.overwrite:
                    bar.write(f"{targets[item.path]} exists, kept (--overwrite replaces it)")
                    bar.update()
                    continue
                try:
                    yield item.path, image_io.read_image(item.path)
                except UserError as error:
                    fail(error)

        for path, restored in upscaler.stream(readable(), settings):
            if isinstance(restored, UserError):
                fail(f"{path}: {restored}")
                continue
            try:
                _save(restored, targets[path], stages=args.save_stages)
            except UserError as error:
                fail(error)
                continue
            seconds.append(restored.seconds)
            height, width = restored.image.shape[:2]
            bar.write(f"{targets[path]}  {width}x{height}  {restored.seconds:.1f} s")
            bar.update()
    return seconds, failed


def _save(restored: Restored, target: Path, *, stages: bool) -> None:
    for stage in _STAGES if stages else ():
        image_io.write_image(_stage_file(target, stage), getattr(restored, stage))
    image_io.write_image(target, restored.image)
