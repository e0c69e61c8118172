"""Reruns and draws the paper's experiments, and builds docs/results.md from them.

python benchmarks/report.py --model dossr-mini --data HR_IMAGES

Results that are there with the same settings are kept. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from experiments import page, runner
from experiments.bench import Bench
from experiments.data import load_pairs

from dossr_jax import Upscaler
from dossr_jax.data.degradation import PRESETS
from dossr_jax.errors import UserError

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
    pairs = load_pairs(
        args.data, count=args.images, side=args.crop, preset=args.preset, seed=args.seed
    )
    bench = Bench(upscaler, pairs)
    common = _common(args, bench)
    facts = _facts(args)
    folder = args.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        experiment, path = runner.EXPERIMENTS[name](), folder / f"{name}.json"
        settings = runner.settings_of(experiment, common)
        if not args.overwrite and runner.kept(path, settings):
            print(f"{path} exists, kept (--overwrite replaces it)")
            continue
        runner.run(path, experiment, bench, settings, facts)
        print(path, flush=True)
        _write_page(args.out)  # each time: a run that is stopped leaves a page of what is there
    _write_page(args.out)


def _write_page(out: Path) -> None:
    """Build results.md from the experiments that are there."""
    folder = out / "results"
    there = {name: folder / f"{name}.json" for name in runner.EXPERIMENTS}
    there = {name: path for name, path in there.items() if path.exists()}
    (out / "results.md").write_text(page.build(there, "results"))


def _common(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What every experiment of this call depends on."""
    paired = (args.data / "HR").is_dir() and (args.data / "LR").is_dir()
    made = f"degraded by preset {args.preset} with seed {args.seed}"
    return {
        "model": args.model if not Path(args.model).exists() else Path(args.model).name,
        "eta": bench.upscaler.config.process.eta,
        "data": args.data.resolve().name,
        "images": [pair.name for pair in bench.pairs],
        "shown_image": bench.pairs[bench.shown].name,
        "crop": args.crop,
        "source": "LR images as given" if paired else made,
    }


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    """Where the numbers come from; they do not decide whether a result is kept."""
    options = f"--images {args.images} --crop {args.crop} --preset {args.preset}"
    name = args.data.resolve().name
    command = f"python benchmarks/report.py --model {Path(args.model).name} --data {name}"
    return {
        "command": f"{command} {options} --seed {args.seed}",
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }


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
    parser.add_argument("--preset", choices=PRESETS, default="realesrgan", help="makes the LR")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument("--overwrite", action="store_true", help="rerun what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
