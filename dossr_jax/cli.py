"""Command line of restoration: files and folders in, restored images out."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dossr_jax import engines, files, options
from dossr_jax.commands import command_line
from dossr_jax.config import TASKS, UPSCALE
from dossr_jax.engines import Engine
from dossr_jax.errors import BAD_INPUT, UserError
from dossr_jax.folder import preview
from dossr_jax.folder.finding import Found, Problems, find
from dossr_jax.folder.manifest import NAME, Manifest
from dossr_jax.folder.maps import MapFile, maps_of
from dossr_jax.folder.model import (
    factor_of_model,
    hash_of_model,
    model_for_task,
    name_of_model,
)
from dossr_jax.folder.naming import SAME, Naming, name_results
from dossr_jax.folder.planning import Task, check_room, plan, seconds_per_pixel
from dossr_jax.folder.progress import Outcome
from dossr_jax.folder.report import write_report
from dossr_jax.folder.run import STAGES, Job, Writing, make_parameters
from dossr_jax.pipeline import Settings
from dossr_jax.pipeline.settings import DEFAULT_MODEL

_EXAMPLES = f"""\
examples:
  python infer.py photo.jpg --output restored
  python infer.py album/ more/*.png --output restored --scale 2 --batch-size 4
  python infer.py album/ --output restored --dry-run
  python infer.py photo.jpg --output restored --model dossr.safetensors --dtype bfloat16
  python infer.py photo.jpg --output restored --start noise --order 1 --steps 50
  python infer.py album/ --output restored --eta-map maps/

Results keep the name of their input and, below a folder, its place. {NAME} beside them lists
what they were made from: the same command again restores what is new, has changed or is missing.
exit status: 0 all restored, 2 something could not be read, written or understood (the rest is
restored all the same), 130 or 143 stopped by Ctrl-C or SIGTERM, 141 nobody reads the output.
"""
_FORMATS = sorted({"jpeg", "tiff", *(kind.suffix[1:] for kind in files.WRITABLE.values())})
_REPORT = "report.html"
_MOST_NAMED = 10


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        description="Restore photos with a DoSSR model, which enlarges them or does one task.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    engines.add_options(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The inputs and options of :func:`restore`."""
    parser.add_argument("input", nargs="+", help="image files, and folders with images in them")
    parser.add_argument("--output", "-o", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"replace results that are not listed in {NAME}, or have changed since",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and write nothing"
    )
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help=f"also write a page with details before and after; 'html' is {_REPORT} in the output "
        "folder",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--format",
        choices=(SAME, *_FORMATS),
        default="png",
        metavar="FORMAT",
        help=f"file format: {', '.join(_FORMATS)}; or 'same' as the input's (default: png, "
        "lossless)",
    )
    results.add_argument(
        "--quality", type=int, help="of lossy formats, 1 to 100 (default: that of the format)"
    )
    name = results.add_mutually_exclusive_group()
    name.add_argument("--suffix", metavar="TEXT", help="text after the name, such as _restored")
    name.add_argument(
        "--name",
        metavar="TEMPLATE",
        help="names with the fields {stem}, {suffix} (of the input), {scale}, {model} and {seed}, "
        "such as '{stem}_x{scale}' (default: '{stem}')",
    )
    results.add_argument(
        "--save-stages",
        action="store_true",
        help="also save the pre-restored image and the decoded one before the colour fix",
    )
    results.add_argument(
        "--strip-metadata",
        action="store_true",
        help="leave out EXIF, XMP, IPTC and texts of the input; the colour profile stays",
    )
    results.add_argument(
        "--no-record",
        dest="record",
        action="store_false",
        help="leave model, settings and version out of the results' metadata",
    )
    kept = parser.add_argument_group(
        "what is kept",
        "Each names a grey image of the size of the input, or a folder with one of the same name\n"
        "for every input, in the same subfolders.",
    ).add_mutually_exclusive_group()
    kept.add_argument(
        "--eta-map",
        metavar="PATH",
        type=Path,
        help="how much of every pixel is kept: white is, as it is or as the pre-restorer enlarges "
        "it, black is restored as without a map, and greys are between; see docs/fidelity.md",
    )
    kept.add_argument(
        "--mask",
        metavar="PATH",
        type=Path,
        help="white, from mid grey on, is filled, whatever the input has there, and all else is "
        "kept; of models for --task inpaint, which it stands for",
    )
    results.add_argument(
        "--task",
        choices=TASKS,
        help="what the model is to undo, at the size of the input: takes the package's own model "
        "of it, or checks that --model is one",
    )
    options.add_options(parser, default_model=DEFAULT_MODEL)
    parser.set_defaults(model=None)  # --task chooses, too


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of a parser with those of :func:`add_arguments`, a model among them.

    Raises:
      UserError: the model is not there or not for the task.
    """
    args = parser.parse_args(arguments)
    if args.mask is not None and args.task is None:
        args.task = "inpaint"
    args.model = model_for_task(args.model, args.task)
    return args


@command_line("stopped; results so far are complete, the same command goes on from there")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0, or 2 if anything could not be read, written or understood.
    """
    for stream in (sys.stdout, sys.stderr):  # No name of a file is beyond any console.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    args = parse(make_parser(), arguments)
    if engines.join(args) == 1:
        return restore(args, engines.Here())
    from dossr_jax import together  # here: one process needs none of it

    if not together.leads():
        return together.follow(args)
    engine = together.Together()
    return engine.lead(lambda: restore(args, engine))


def restore(args: argparse.Namespace, engine: Engine) -> int:
    """Restore what parsed arguments name; returns the exit status.

    Raises:
      UserError: what concerns the whole run, in one line.
    """
    problems = Problems()
    request = _check(args, problems)
    if problems:
        return _tell(problems)
    for line in preview.left_out_lines(request.found.left_out):
        print(line)
    manifest = Manifest(args.output)
    begin = time.perf_counter()
    settings = engine.prepare(args, request.fields)
    loaded = time.perf_counter() - begin
    writing = Writing(args.quality, args.strip_metadata, args.record)
    parameters = make_parameters(settings, args, args.model, request.hashes, writing)
    tasks = plan(
        request.found.inputs,
        request.names,
        manifest,
        parameters,
        scale=settings.scale,
        overwrite=args.overwrite,
        maps=request.maps,
        factor=request.factor,
    )
    check_room(tasks, args.output)
    _tell(request.found.unreadable)
    incomplete = bool(request.found.unreadable)
    if args.dry_run:
        rate = seconds_per_pixel(manifest, parameters)
        for line in preview.dry_run_lines(tasks, args.output, rate):
            print(line)
        incomplete |= any(task.action == "impossible" for task in tasks)
        return BAD_INPUT if incomplete else 0
    for task in tasks:
        if task.action == "kept":
            print(f"{task.input.path}: kept, {task.reason} (--overwrite replaces it)")
    job = Job(args.output, settings, parameters, writing)
    folders = {(args.output / task.target).parent for task in tasks}
    with manifest.writing({args.output, *folders}):
        outcome = engine.restore(tasks, job, manifest.put)
    print(_summary(outcome, tasks, args.output) + f" (model loaded in {loaded:.1f} s)")
    if args.report is not None:
        write_report(args.report, tasks, manifest, parameters)
    return BAD_INPUT if outcome.failed or incomplete else 0


@dataclasses.dataclass
class _Request:
    """What is asked for: settings, hashes of models by name, what the model makes of a pixel,
    inputs, their maps and names of results."""

    fields: dict[str, Any]
    hashes: dict[str, str]
    factor: int
    found: Found
    maps: list[MapFile | UserError] | None
    names: list[tuple[Path, tuple[Path, ...]]]


def _check(args: argparse.Namespace, problems: Problems) -> _Request:
    """All that can be told without the model; meaningful where there are no problems."""
    fields, hashes, factor, maps, names = {}, {}, UPSCALE, None, []
    with problems.collected():
        fields = options.picture_fields(args)
    with problems.collected():
        if args.quality is not None and not 1 <= args.quality <= 100:
            raise UserError(f"quality {args.quality}: give a number from 1 to 100")
    with problems.collected():
        files.check_folder(args.output)
    with problems.collected():
        _check_report(args)
    with problems.collected():
        hashes = {m: hash_of_model(m) for m in (args.model, args.preprocessor) if m is not None}
        factor = factor_of_model(args.model)
    found = find(args.input, args.output, problems)
    with problems.collected():
        if place := args.eta_map or args.mask:
            maps = maps_of(found.inputs, place, mask=args.mask is not None)
    with problems.collected():
        naming = _naming(args, {"scale": factor} | fields)
        names = name_results(found, naming, args.output, args.save_stages * STAGES, problems)
    return _Request(fields, hashes, factor, found, maps, names)


def _tell(problems: Sequence[UserError]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return BAD_INPUT


def _check_report(args: argparse.Namespace) -> None:
    """Make a path of the option, if there is one."""
    if args.report is None:
        return
    args.report = args.output / _REPORT if args.report == "html" else Path(args.report)
    if args.report.suffix.lower() != ".html":
        raise UserError(f"report {args.report}: give a name that ends in .html, or 'html'")
    files.check_folder(args.report.parent)


def _naming(args: argparse.Namespace, fields: dict[str, Any]) -> Naming:
    suffix = (args.suffix or "").replace("{", "{{").replace("}", "}}")
    values = {
        "scale": f"{fields['scale']:g}",
        "seed": str(fields.get("seed", Settings.seed)),
        "model": name_of_model(args.model),
    }
    return Naming(args.name or f"{{stem}}{suffix}", args.format, values)


def _summary(outcome: Outcome, tasks: Sequence[Task], output: Path) -> str:
    seconds = outcome.seconds
    parts = [f"{len(seconds)} restored into {output}"]
    if seconds:
        parts.append(
            f"median {statistics.median(seconds):.1f} s per image, {sum(seconds):.1f} s in total, "
            "including compilation"
        )
    for action in ("unchanged", "kept"):
        if count := sum(task.action == action for task in tasks):
            parts.append(f"{count} {action}")
    if failed := outcome.failed:
        names = ", ".join(path.name for path in failed[:_MOST_NAMED])
        more = f", ... (all in {output / NAME})" if len(failed) > _MOST_NAMED else ""
        parts.append(f"{len(failed)} failed: {names}{more}")
    return "; ".join(parts)
