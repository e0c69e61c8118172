"""Command line of the evaluation: `python -m dossr_jax.evaluate`, `dossr-evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dossr_jax import files, options
from dossr_jax.commands import command_line
from dossr_jax.data.degradation import PRESETS
from dossr_jax.errors import BAD_INPUT, UserError
from dossr_jax.evaluate import candidates, classical, models, report
from dossr_jax.evaluate.evaluation import Evaluation
from dossr_jax.evaluate.page import DETAIL, Gallery, make_page
from dossr_jax.evaluate.scores import (
    BORDER,
    METRICS,
    OWN,
    check_metrics,
    convention,
    get_metric,
)
from dossr_jax.evaluate.sets import Folder, ImageSet, preset_scale
from dossr_jax.temporary import temporary

_PAGE = "evaluation.html"
# What a page compares where nothing is named.
_COMPARED = {"baselines": ["bicubic"], "model": ["dossr-mini", "realesrgan"]}
_VERSIONS = ("dossr-jax", "jax", "flax", "numpy", "pillow")
_EXAMPLES = """\
examples:
  python -m dossr_jax.evaluate restored/ --hr HR/
  python -m dossr_jax.evaluate --lr LR/ --hr HR/ --model dossr-mini --baselines bicubic pre-restored
  python -m dossr_jax.evaluate --hr HR/ --preset realesrgan --model a.safetensors \\
    --model b.safetensors --output out --report html
  python -m dossr_jax.evaluate --lr photos/ --html page.html

exit status: 0 all measured, 2 something could not be read, paired, restored or compared (the rest
is measured all the same). docs/evaluation.md says what every number means.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.evaluate",
        description="Measure restored images, or models and baselines on the same images.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "restored", nargs="*", type=Path, help="folders of restored images, a row each"
    )
    parser.add_argument("--hr", type=Path, help="folder of the ground truth")
    parser.add_argument("--lr", type=Path, help="folder of the LR images that a model restores")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"make the LR images from the ground truth: {', '.join(PRESETS)}",
    )
    parser.add_argument(
        "--degradation-seed", type=int, default=0, help="its random seed (default: %(default)s)"
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"on the same images: {', '.join(candidates.BASELINES)}, rrdb:FILE, rrdb:realesrgan; "
        "of several models, in the first",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(METRICS)}, or pyiqa:NAME for any that pyiqa has "
        f"(default: {' '.join(OWN)})",
    )
    parser.add_argument(
        "--border",
        type=int,
        default=BORDER,
        help="pixels at every edge that PSNR and SSIM leave out (default: %(default)s)",
    )
    parser.add_argument(
        "--output", "-o", type=Path, help="folder for evaluation.json and evaluation.csv"
    )
    parser.add_argument(
        "--save-images", action="store_true", help="keep the restored images there, too"
    )
    parser.add_argument(
        "--report",
        choices=("html",),
        help=f"also write the page of --html there, as {_PAGE}",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page that compares details of the images, a pixel per pixel, under a slider; "
        "where no results, model or baseline are named, of bicubic, dossr-mini and realesrgan",
    )
    parser.add_argument(
        "--report-images",
        type=int,
        default=20,
        metavar="N",
        help="show the first N images on the page (default: %(default)s)",
    )
    parser.add_argument(
        "--report-size",
        type=int,
        default=DETAIL,
        metavar="PIXELS",
        help="side of the details that it shows (default: %(default)s)",
    )
    parser.add_argument("--summary", action="store_true", help="print the means only")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="timed runs of the first image for the latency, 0 for none (default: %(default)s)",
    )
    options.add_options(parser, default_model=None, several="a row each")
    return parser


@command_line("stopped; nothing was written")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0, or 2 if anything could not be read, paired, restored or compared.
    """
    args = make_parser().parse_args(arguments)
    if args.html is not None and not (args.restored or args.model or args.baselines):
        vars(args).update(_COMPARED)
    return _evaluate(args, list(sys.argv[1:] if arguments is None else arguments))


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together; a preset says the scale."""
    restores = args.model is not None or bool(args.baselines)
    needs_model = [name for name in args.baselines if name not in candidates.WITHOUT_MODEL]
    candidates.check_baselines(args.baselines)
    if min(args.border, args.repeats, args.report_images) < 0:
        raise UserError("--border, --repeats and --report-images are 0 or more")
    if args.report_size < 1:
        raise UserError("--report-size is a pixel or more")
    if args.html is not None and args.html.is_dir():
        raise UserError(f"{args.html}: a folder; give the page a name, as {args.html / _PAGE}")
    if not args.restored and not restores:
        raise UserError(
            "nothing to evaluate; name folders of restored images, --model, --baselines"
        )
    if needs_model and args.model is None:
        raise UserError(f"baseline {needs_model[0]} runs in a model; give --model")
    if "autoencoder" in args.baselines and args.hr is None:
        raise UserError("baseline autoencoder codes the ground truth; give --hr")
    if args.preset is not None and (args.hr is None or args.lr is not None):
        raise UserError("--preset makes LR images from --hr; give --hr, and no --lr")
    if restores and args.lr is None and args.preset is None:
        raise UserError("no LR images to restore; give --lr, or --hr and --preset")
    if args.preset is not None:
        scale = preset_scale(args.preset)
        method = next((name for name in args.baselines if name in classical.METHODS), None)
        if method is not None and scale != 1:
            raise UserError(
                f"baseline {method} does not enlarge; preset {args.preset} reduces by {scale}"
            )
        if scale != vars(args).setdefault("scale", float(scale)):
            raise UserError(f"preset {args.preset} reduces by {scale}; leave out --scale")
    if args.save_images and args.output is None:
        raise UserError("--save-images keeps them in --output; give it")
    if args.report is not None and args.output is None:
        raise UserError("--report is written to --output; give it")


def _metrics(args: argparse.Namespace) -> list[str]:
    """Names of the metrics, each once, all of them ready to run."""
    if args.metrics is None:
        return [name for name, m in OWN.items() if args.hr is not None or not m.needs_reference]
    names = list(dict.fromkeys(args.metrics))
    check_metrics(names)
    for name in names:
        if get_metric(name).needs_reference and args.hr is None:
            raise UserError(f"{name} needs the ground truth; give --hr, or leave it out")
    return names


def _named(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Names of the folders' rows, and models by the names of theirs: no two are equal."""
    baselines, given = set(args.baselines), args.model or []
    names = [path.name for path in args.restored] + [Path(model).stem for model in given]
    names = models.unique(names, baselines)
    rows = names[: len(args.restored)]
    return rows, dict(zip(names[len(rows) :], given, strict=True))


def _evaluate(args: argparse.Namespace, arguments: list[str]) -> int:
    _check(args)
    metrics = _metrics(args)
    if args.output is not None:
        files.check_folder(args.output)
    if args.html is not None:
        files.check_folder(args.html.parent)
    images = ImageSet(args.lr, args.hr, preset=args.preset, seed=args.degradation_seed)
    opened = [Folder.open(path).paired_with(images.hr) for path in args.restored]
    rows, given = _named(args)
    folders = dict(zip(rows, opened, strict=True))
    models.check(args, given)
    problems = images.problems + [p for folder in opened for p in folder.problems]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    evaluation = Evaluation(
        images=images,
        metrics=metrics,
        border=args.border,
        repeats=args.repeats,
        save=args.output if args.save_images else None,
    )
    with contextlib.ExitStack() as stack:
        if args.report is not None or args.html is not None:
            names = sorted({*images.names, *(name for f in opened for name in f.files)})
            place = temporary(Path(tempfile.gettempdir(), "evaluation"), folder=True)
            evaluation.gallery = Gallery(stack.enter_context(place), names[: args.report_images])
        results = _measure(args, evaluation, folders, given)
        notes = _notes(evaluation)
        conventions = {name: convention(name, border=args.border) for name in metrics}
        if not any(result.scores for result in results):
            raise UserError("nothing could be measured; see the errors above")
        print(report.mean_table(results, metrics) + "\n")
        said = [f"{name}: {text}" for name, text in conventions.items()]
        said += [*_about_costs(results), *notes]
        print("\n".join(said))
        written: dict[Path, bytes] = {}
        shown = [args.html] if args.html is not None else []
        if args.output is not None:
            about: dict[str, Any] = {
                "command": arguments,
                "versions": {
                    "python": platform.python_version(),
                    **{name: metadata.version(name) for name in _VERSIONS},
                },
                "device": str(jax.local_devices()[0].device_kind),
                "degradation": {"preset": args.preset, "seed": args.degradation_seed},
                "failures": problems + evaluation.failures,
                "notes": notes,
            }
            json = report.as_json(results, conventions, about)
            written[args.output / "evaluation.json"] = json.encode()
            written[args.output / "evaluation.csv"] = report.as_csv(results, metrics).encode()
            if args.report is not None:
                shown.append(args.output / _PAGE)
        if evaluation.gallery is not None:
            page = make_page(
                results, metrics, evaluation.gallery, images, said, detail=args.report_size
            )
            written |= dict.fromkeys(shown, page)
        for path, data in written.items():
            files.write_file(path, data)
        if written:
            print(f"written: {', '.join(map(str, written))}")
    if problems or evaluation.failures:
        count = len(problems) + len(evaluation.failures)
        print(f"{count} could not be paired or measured; see the errors above")
        return BAD_INPUT
    return 0


def _measure(
    args: argparse.Namespace,
    evaluation: Evaluation,
    folders: Mapping[str, Folder],
    given: Mapping[str, str],
) -> list[report.Result]:
    """Score folders, baselines and models by name, in this order; print as it goes."""
    ways = len(set(args.baselines)) + len(given)
    total = sum(len(f.files) for f in folders.values()) + ways * len(evaluation.images.names)
    results = []
    with tqdm(total=total, unit="image", dynamic_ncols=True) as bar:

        def advance(problem: str | None) -> None:
            if problem is not None:
                bar.write(f"error: {problem}", file=sys.stderr)
            bar.update()

        def add(result: report.Result) -> None:
            results.append(result)
            if not args.summary:
                bar.write(report.image_table(result, evaluation.metrics) + "\n")

        evaluation.advance = advance
        for row, folder in folders.items():
            add(evaluation.folder(folder, row))
        for group in models.make_candidates(args, given):
            try:
                # No variable holds a candidate, and with it a model.
                for result in map(evaluation.candidate, group):
                    add(result)
            except UserError as error:  # of a model's file
                if not results:
                    raise
                evaluation.fail(str(error))
    return results


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [
        f"{metric}: not defined for {len(names)} images too small or flat "
        f"({', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''})"
        for metric, names in evaluation.gaps.items()
    ]
    if evaluation.mixed:
        listed = ", ".join(sorted(evaluation.mixed))
        notes.append(f"grey against colour, measured as three channels: {listed}")
    return notes


def _about_costs(results: Sequence[report.Result]) -> list[str]:
    costs = [result.cost for result in results if result.cost is not None]
    if not costs:
        return []
    device = jax.local_devices()[0]
    where = "of the process" if device.platform == "cpu" else "of the device so far"
    return [
        "parameters: of the networks that run; evaluations: of the denoising network, for an image "
        "or each of its tiles",
        f"latency: median, compiled, of an image of {costs[0].timed} alone, on "
        f"{device.device_kind}; memory: peak {where}, scoring and compiling included",
    ]


if __name__ == "__main__":
    sys.exit(main())
