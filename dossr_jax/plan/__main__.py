"""Say whether a job fits a slice of accelerators, before it is booked.

    python -m dossr_jax.plan --config sd21_dossr_v5e256 --topology v5e:16x16
    python -m dossr_jax.plan --systems --size 512

Compiles the training step and the restoring program for devices that are not there and prints,
for one of them, memory, operations, traffic and the least time of a run. Status 0: it fits;
1: it does not, with a remedy; 2: bad input. Needs a CPU and, for TPUs, the extra [plan].

With --systems it compiles nothing, and prints for every system what restoring an image costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dossr_jax import files
from dossr_jax.commands import command_line
from dossr_jax.config import TrainConfig
from dossr_jax.errors import UserError
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.pipeline import DEFAULT_TILE
from dossr_jax.plan import text
from dossr_jax.plan.chips import Slice, open_slice
from dossr_jax.plan.efficiency import ABSENT, HEAD, measure_systems
from dossr_jax.plan.programs import restore_program, sample_flops, train_program
from dossr_jax.plan.report import Report, plan, versions
from dossr_jax.plan.search import Job, largest_fit, plan_apart, try_batches
from dossr_jax.training import flags
from dossr_jax.training.experiments import load_config


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    flags.add_options(parser)
    parser.add_argument(
        "--topology", help="v5e:16x16, v6e:8x8, v5p:4x4x4, ..., h100:1, a100:8, cpu"
    )
    parser.add_argument(
        "--systems",
        action="store_true",
        help="compare parameters and operations of all systems; with --size and --json alone",
    )
    parser.add_argument("--what", choices=("train", "restore", "both"), default="both")
    parser.add_argument(
        "--batch",
        type=int,
        help="samples per step, or images restored together (default: the configuration's, and one "
        "per device)",
    )
    parser.add_argument("--size", type=int, help="side of crops and of restored images in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the reports here")
    parser.add_argument("--search", action="store_true", help="find the largest batch that fits")
    parser.add_argument(
        "--full-effort",
        action="store_true",
        help="compile as a real run would, ten times as long, for the last percents",
    )
    parser.add_argument(
        "--autotuned",
        type=Path,
        metavar="FILE",
        help="algorithms measured on a GPU of this kind, which XLA wrote there where it ran with "
        "XLA_FLAGS=--xla_gpu_dump_autotune_results_to=FILE",
    )
    return parser


def plan_train(args: argparse.Namespace, config: TrainConfig, target: Slice) -> dict[str, Any]:
    """Report of the training step, as printed and as written."""
    settings = {
        "what": "train",
        "config": args.config,
        "size": config.data.crop,
        "microbatches": config.optimizer.microbatches,
        **dataclasses.asdict(config.parallel),
    }
    unit = len(target.devices) * config.optimizer.microbatches
    job = functools.partial(train_program, config)
    record = _run(args, settings, job, target, config.data.batch, unit)
    needed = sample_flops(config)
    record["flops_needed_per_sample"] = needed
    print(f"  operations that a sample needs, nothing recomputed: {text.tera(needed)}")
    return record


def plan_restore(args: argparse.Namespace, config: TrainConfig, target: Slice) -> dict[str, Any]:
    """Report of the restoring program, as printed and as written."""
    size = DEFAULT_TILE if args.size is None else args.size
    settings = {
        "what": "restore",
        "config": args.config,
        "size": size,
        "dtype": config.parallel.dtype,
        "steps": config.model.sampler.steps,
    }
    job = functools.partial(restore_program, config.model, size=size, dtype=config.parallel.dtype)
    devices = len(target.devices)
    return _run(args, settings, job, target, args.batch or devices, devices)


def _run(
    args: argparse.Namespace,
    settings: dict[str, Any],
    job: Job,
    target: Slice,
    batch: int,
    unit: int,
) -> dict[str, Any]:
    """Plan at a batch and, if wanted, look for the largest; print as it goes."""

    def plan_batch(samples: int) -> Report:
        # A search meets batches at which a compiler crashes; a single plan may crash with it.
        if args.search:
            return plan_apart(job, target, samples, quick=not args.full_effort)
        return plan(job(target.devices, samples), target, quick=not args.full_effort)

    report = plan_batch(batch)
    print(text.describe(report, settings), flush=True)
    if not report.fits:
        print(f"  try {text.remedy(report, settings)}", flush=True)
    record = settings | report.to_dict()
    if args.search:
        tried = try_batches(plan_batch, report, unit)
        record["search"] = {
            "largest": largest_fit(tried),
            "tried": {n: dataclasses.asdict(r) for n, r in tried.items()},
        }
        print(text.describe_search(tried), flush=True)
    return record


def compare_systems(args: argparse.Namespace) -> int:
    """Print a row for every published model, and write them all; returns the exit status."""
    if any((args.config, args.topology, args.batch, args.flags, args.search, args.full_effort)):
        raise UserError("--systems compares published models; give it with --size and --json alone")
    size = DEFAULT_TILE if args.size is None else args.size
    rows, measured = [], measure_systems(size)
    print(f"one image, {size // UPSCALE} -> {size} px, weights in bfloat16\n{HEAD}", flush=True)
    for row in measured:
        print(row.line, flush=True)
        rows.append(dataclasses.asdict(row))
    for name in ABSENT:
        print(f"{name:20}no configuration here")
    if args.json:
        _write(args.json, {"versions": versions(), "systems": rows, "absent": ABSENT})
    return 0


@command_line("stopped; nothing was written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = flags.read_arguments(make_parser(), argv)
    if args.help:
        print(flags.full_help(make_parser(), args))
        return 0
    jax.config.update("jax_platforms", "cpu")  # what is planned for is not looked for here
    if args.systems:
        return compare_systems(args)
    if args.config is None or args.topology is None:
        raise UserError("nothing to plan; give --config and --topology, or --systems")
    changes = list(args.flags)
    changes += [f"--data.crop={args.size}"] if args.size is not None else []
    changes += [f"--data.batch={args.batch}"] if args.batch is not None else []
    config = load_config(args.config, changes)
    target = open_slice(args.topology, args.autotuned)
    parts = {"train": plan_train, "restore": plan_restore}
    wanted = parts if args.what == "both" else [args.what]
    records = [parts[what](args, config, target) for what in wanted]
    if args.json:
        _write(args.json, {"versions": versions(), "reports": records})
    return 0 if all(record["fits"] for record in records) else 1


def _write(path: Path, value: Any) -> None:
    files.write_file(path, (json.dumps(value, indent=1) + "\n").encode())


if __name__ == "__main__":
    raise SystemExit(main())
