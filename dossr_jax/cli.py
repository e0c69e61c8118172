"""Command line of restoration: files and folders in, enlarged images out."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dossr_jax import image_io
from dossr_jax.diffusion.schedule import GRID_NAMES
from dossr_jax.diffusion.solver import KIND_NAMES, START_NAMES
from dossr_jax.errors import UserError
from dossr_jax.image_io import InputImage
from dossr_jax.pipeline import BUILT_IN, DEFAULT_TILE, DTYPES, Restored, Settings, Upscaler

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


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="infer.py",
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
    picture.add_argument(
        "--scale", type=float, default=defaults.scale, help="enlargement, any number (default: 4)"
    )
    picture.add_argument(
        "--steps", type=int, default=defaults.steps, help="network evaluations, 1-50 (*)"
    )
    picture.add_argument(
        "--order",
        type=int,
        choices=(1, 2, 3),
        default=defaults.order,
        help="order of the solver; 1 is advised from 10 steps on (*)",
    )
    picture.add_argument(
        "--solver",
        choices=KIND_NAMES,
        default=defaults.solver,
        help="domain-shift SDE as published, or its probability-flow ODE (*)",
    )
    picture.add_argument(
        "--start",
        choices=START_NAMES,
        default=defaults.start,
        help="start from the LR image as published, or from pure noise: then order-1 sde is "
        "DDPM and order-1 ode DDIM (default: lr)",
    )
    picture.add_argument(
        "--grid",
        choices=GRID_NAMES,
        default=defaults.grid,
        help="times uniform in t as published, uniform in log lambda, or jump: few at high noise "
        "(*)",
    )
    picture.add_argument(
        "--final-denoise",
        action=argparse.BooleanOptionalAction,
        help="end without the noise that the published sampler leaves (*)",
    )
    picture.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    picture.add_argument("--prompt", help="text of the wanted picture (default: the stored one)")
    picture.add_argument(
        "--negative-prompt", help="text to steer away from, with --cfg-scale (default: stored)"
    )
    picture.add_argument(
        "--cfg-scale",
        type=float,
        default=defaults.cfg_scale,
        help="classifier-free guidance; 1 is off and costs nothing (default: 1)",
    )
    picture.add_argument(
        "--strength",
        type=float,
        default=defaults.strength,
        help="strength of the control by the input, 0-1 or more (default: 1)",
    )
    picture.add_argument(
        "--fidelity",
        type=float,
        default=defaults.fidelity,
        help="0: free detail, 1: keep to the pre-restored image (*)",
    )
    picture.add_argument(
        "--color-fix",
        choices=("wavelet", "adain", "none"),
        default=defaults.color_fix,
        help="take colours from the pre-restored image (default: wavelet)",
    )

    speed = parser.add_argument_group("memory and speed")
    speed.add_argument(
        "--tile",
        type=int,
        default=DEFAULT_TILE,
        help="side of a tile in pixels of the fourfold image, 0 for none (default: 512)",
    )
    speed.add_argument(
        "--batch-size",
        type=int,
        default=defaults.batch_size,
        help="images, or tiles of large images, that run together (default: 1)",
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
        targets = _targets(inputs, args.output, args.format)
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


def _targets(inputs: Sequence[InputImage], output: Path, format_: str) -> dict[Path, Path]:
    """Input file -> output file; two inputs for one output are an error."""
    targets: dict[Path, Path] = {}
    for item in inputs:
        suffix = item.relative.suffix if format_ == "same" else f".{format_}"
        targets[item.path] = output / item.relative.with_suffix(suffix)
    owners: dict[Path, Path] = {}
    for path, target in targets.items():
        if target in owners:
            raise UserError(
                f"{path}: would be written to {target}, as {owners[target]}; rename one or "
                "restore them into different folders"
            )
        owners[target] = path
    return targets


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

        def fail(error: UserError) -> None:
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
    if stages:
        for name in ("pre_restored", "decoded"):
            path = target.with_name(f"{target.stem}_{name}{target.suffix}")
            image_io.write_image(path, getattr(restored, name))
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
