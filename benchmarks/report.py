"""Reruns and draws the paper's experiments, and builds docs/results.md from them.

python benchmarks/report.py --model dossr-mini --data HR_IMAGES
python benchmarks/report.py --data HR_IMAGES --system Real-ESRGAN=realesrgan

Results that are there of the same settings, model, images, metrics and versions are kept; others
are not shown. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import functools
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiments import page, runner
from experiments.bench import Bench
from experiments.data import digest_of, is_paired, load_pairs

from dossr_jax import Upscaler, weights
from dossr_jax.data.degradation import PRESETS
from dossr_jax.errors import UserError
from dossr_jax.evaluate import convention
from dossr_jax.evaluate.models import read_config
from dossr_jax.pipeline.upscaler import locate
from dossr_jax.systems import system_of
from dossr_jax.systems.rrdb import PACKAGED, find_packaged

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 0, or 2 after one line about what the user has to change."""
    args = _parser().parse_args(argv)
    try:
        _report(args)
    except UserError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


def _report(args: argparse.Namespace) -> None:
    upscaler = Upscaler.from_pretrained(args.model)
    noise = None if args.noise_model is None else Upscaler.from_pretrained(args.noise_model)
    presets = list(dict.fromkeys(args.preset or ("light", "realesrgan")))
    pairs = load_pairs(
        args.data, count=args.images, side=args.crop, presets=presets, seed=args.seed
    )
    given = dict(args.system)
    files = {name: _about_file(name, model) for name, model in given.items()}
    load = {name: functools.partial(Upscaler.from_pretrained, m) for name, m in given.items()}
    bench = Bench(upscaler, pairs, noise, load)
    common = _common(args, bench)
    experiments = {name: make() for name, make in runner.EXPERIMENTS.items()}
    if noise is not None:
        said = _about(args.noise_model, upscaler, noise)
        experiments["start"] = runner.EXPERIMENTS["start"](said)
    seeded = {
        name: said
        for name, said in files.items()
        if "seed" in system_of(read_config(given[name])).settings
    }
    experiments["seeds"] = runner.EXPERIMENTS["seeds"](seeded)
    experiments["systems"] = runner.EXPERIMENTS["systems"](files)
    settings = {name: runner.settings_of(e, common) for name, e in experiments.items()}
    folder = args.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in experiments}
    kept = {name for name in experiments if runner.kept(paths[name], settings[name])}
    command = _command(args, presets)
    for name in args.only:
        if name in kept and not args.overwrite:
            print(f"{paths[name]} exists, kept (--overwrite replaces it)")
            continue
        runner.run(paths[name], experiments[name], bench, settings[name])
        print(paths[name], flush=True)
        kept.add(name)
        # Each time: a run that is stopped leaves a page of what is there.
        _write_page(args.out, paths, kept, command)
    _write_page(args.out, paths, kept, command)
    for name, path in paths.items():
        if name not in kept and path.exists():
            print(f"{path} is of another model, data, metrics or settings: not on the page")


def _write_page(out: Path, paths: dict[str, Path], kept: set[str], command: str) -> None:
    """Build results.md from the experiments that belong together."""
    there = {name: path for name, path in paths.items() if name in kept}
    (out / "results.md").write_text(page.build(there, "results", command))


def _common(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What every experiment of this call depends on."""
    pairs = bench.pairs_of(bench.sources[0])
    versions = ("jax", "flax", "numpy", *(n for n in ("ssimulacra2",) if n in bench.names))
    return {
        "model": Path(args.model).name,
        "model_sha256": digest_of(_files_of(args.model)),
        "eta": bench.upscaler.config.process.eta,
        "data": args.data.resolve().name,
        "images": [pair.name for pair in pairs],
        "images_sha256": [pair.digest for pair in pairs],
        "shown_image": pairs[bench.shown].name,
        "crop": args.crop,
        "sources": bench.sources,
        "seed": args.seed,
        "metrics": {name: convention(name) for name in bench.names},
        "left_out": bench.left_out,
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {name: version(name) for name in versions},
    }


def _files_of(model: str) -> Path:
    """The file or folder of a model; UserError if there is none."""
    return find_packaged(model) if model in PACKAGED else locate(model)


def _about_file(name: str, model: str) -> str:
    """What the page says of another system's file."""
    return f"{name}: {Path(model).name} (SHA-256 {digest_of(_files_of(model))[:16]}...)."


def _about(file: Path, upscaler: Upscaler, noise: Upscaler) -> str:
    """What the page says of a ControlNet trained from noise; which networks differ beside it."""
    ours, theirs = (
        {name: np.asarray(p[...]) for name, p in weights.names_and_params(u.model)}
        for u in (upscaler, noise)
    )
    differing = {
        name.split(".")[0]
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not np.array_equal(ours[name], theirs[name])
    } - {"control"}
    other = f"differs in {', '.join(sorted(differing))} too" if differing else "is equal"
    return (
        f'Rows "trained from noise" start from noise with {file.name} (SHA-256 '
        f"{digest_of(file)[:16]}...), whose ControlNet was trained as usual, from noise; but for "
        f"the ControlNet it {other}. DDPM is order 1, SDE; DDIM is order 1, ODE."
    )


def _command(args: argparse.Namespace, presets: list[str]) -> str:
    """The call that makes the whole page."""
    name = args.data.resolve().name
    parts = ["python benchmarks/report.py", f"--model {Path(args.model).name}", f"--data {name}"]
    if args.noise_model is not None:
        parts.append(f"--noise-model {args.noise_model.name}")
    for system, model in args.system:
        parts.append(f"--system {shlex.quote(f'{system}={Path(model).name}')}")
    parts += [f"--images {args.images}", f"--crop {args.crop}"]
    if not is_paired(args.data):
        parts += [*(f"--preset {preset}" for preset in presets), f"--seed {args.seed}"]
    return " ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini", help="a name, file or folder")
    parser.add_argument("--data", type=Path, required=True, help="HR images, or HR/ and LR/")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=runner.EXPERIMENTS,
        default=list(runner.EXPERIMENTS),
        metavar="EXPERIMENT",
        help=f"some of {', '.join(runner.EXPERIMENTS)}",
    )
    parser.add_argument("--images", type=int, default=6, help="crops, spread over the folder")
    parser.add_argument("--crop", type=int, default=256, help="side of an HR crop in pixels")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        action="append",
        help="makes the LR; may be given several times (default: light and realesrgan)",
    )
    parser.add_argument(
        "--noise-model",
        type=Path,
        metavar="FILE",
        help="a model whose ControlNet was trained from noise, on the same prior: compared with "
        "in the experiment 'start'",
    )
    parser.add_argument(
        "--system",
        type=_system,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="another system's model: a file, a folder or a name; may be given several times",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the degradation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument("--overwrite", action="store_true", help="rerun what is there")
    return parser


def _system(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=FILE")
    return name, model


if __name__ == "__main__":
    sys.exit(main())
