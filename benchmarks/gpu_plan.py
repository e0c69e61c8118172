"""What restoring costs an H100, by the compiler, against the budget that was set.

    pip install ".[plan-gpu]"
    python benchmarks/gpu_plan.py            # compare
    python benchmarks/gpu_plan.py --update   # set the budget to what was found, and record it

Compiles DoSSR at SD 2.1 size, 5 steps, 512 px, bfloat16, at batch 1, 4 and 16; no GPU is needed.
One JSON line per batch; exit status 1 where one is over its budget (gpu_plan.json).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dossr_jax.plan import Program, open_slice, plan, restore_program
from dossr_jax.plan.report import versions
from dossr_jax.training.experiments import load_config

BUDGET = Path(__file__).with_suffix(".json")
CONFIG, TOPOLOGY, BATCHES, SIZE, DTYPE = "sd21_dossr", "h100:1", (1, 4, 16), 512, "bfloat16"
# What may differ from one version of the compiler to the next.
_MARGIN = 1.02


def make_program(devices: Sequence[Any], batch: int) -> Program:
    """The program that is planned."""
    return restore_program(load_config(CONFIG).model, devices, batch, size=SIZE, dtype=DTYPE)


def measure(batch: int, target: Any) -> dict[str, Any]:
    """The plan's figures for one batch."""
    report = plan(make_program(target.devices, batch), target)
    assert report.traffic is not None and report.temporaries is not None
    return {
        "batch": batch,
        "gigabytes_per_image": round(report.traffic / batch / 1e9, 2),
        "kernels": sum(found.launches for found in report.kernels.values()),
        "launches": report.launches,
        "temporaries_gigabytes": round(report.temporaries / 1e9, 3),
        "milliseconds_per_image_at_least": {
            name: round(1e3 * seconds / batch, 2) for name, seconds in report.bounds.items()
        },
    }


def program_digest() -> str:
    """A digest of the restore program at batch 1, without what only names things.

    Lowered for AMD's GPUs, which needs no plugin: but for attention it is NVIDIA's program.
    """
    program = make_program(jax.devices("cpu")[:1], 1)
    text = program.trace().lower(lowering_platforms=("rocm",)).as_text()
    return hashlib.sha256(re.sub(r"\bloc\(.*\)|@[\w.$]+", "", text).encode()).hexdigest()


def over_budget(found: dict[str, Any], budget: dict[str, Any]) -> list[str]:
    """What of a batch costs more than it may."""
    limited = ("gigabytes_per_image", "kernels", "launches", "temporaries_gigabytes")
    return [
        f"batch {found['batch']}: {name} {found[name]}, {budget[name]} allowed"
        for name in limited
        if found[name] > _MARGIN * budget[name]
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--update", action="store_true", help="set the budget to what is found")
    args = parser.parse_args(arguments)
    target = open_slice(TOPOLOGY)
    found = []
    for batch in BATCHES:
        found.append(measure(batch, target))
        print(json.dumps({"topology": TOPOLOGY, **found[-1], **versions()}), flush=True)
    if args.update:
        record = {
            "config": CONFIG,
            "topology": TOPOLOGY,
            "versions": versions(),
            "program": program_digest(),
            "batches": found,
        }
        BUDGET.write_text(json.dumps(record, indent=1) + "\n")
        return 0
    allowed = json.loads(BUDGET.read_text())["batches"]
    over = [line for one, may in zip(found, allowed, strict=True) for line in over_budget(one, may)]
    for line in over:
        print(line)
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
