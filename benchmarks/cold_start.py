"""How long a command takes from its start to its end, each time in a new process.

    python benchmarks/cold_start.py --repeats 5
    python benchmarks/cold_start.py --cases warm exported --model dossr.safetensors --size 128

Cases, of restoring one picture unless it says otherwise:

    help      infer.py --help
    warm      the cache folder holds the programs of an earlier run, as by default
    exported  programs of dossr_jax.export, and what XLA made of them in the cache folder
    empty     the cache folder is empty
    none      --no-cache

One line of JSON per case: wall seconds (shortest, median, all), the shortest CPU seconds of all
cores together, which other jobs on the machine disturb less, most memory, device and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
CASES = ("help", "warm", "exported", "empty", "none")
# What would name another cache folder, or keep less in it.
_OF_JAX = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--model", default="dossr-mini")
    parser.add_argument("--size", type=int, default=64, help="side of the picture in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="processes per case")
    return parser.parse_args(argv)


def measure(command: Sequence[str | Path], cache: Path) -> tuple[float, float, int]:
    """Wall and CPU seconds and peak bytes of a command; its cache folder is `cache`."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_JAX}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: status {process.returncode}\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def run(case: str, args: argparse.Namespace, folder: Path) -> list[tuple[float, float, int]]:
    """Measure a case, in an empty folder."""
    picture = folder / "picture.png"
    levels = np.random.default_rng(0).integers(0, 256, (args.size, args.size, 3), np.uint8)
    Image.fromarray(levels).save(picture)

    def once(number: int, cache: Path, *flags: str | Path) -> tuple[float, float, int]:
        if case == "help":
            return measure(["infer.py", "--help"], cache)
        output = folder / f"output{number}"
        command = ["infer.py", picture, "--output", output, "--model", args.model, *flags]
        return measure(command, cache)

    flags: list[str | Path] = []
    if case == "none":
        flags = ["--no-cache"]
    if case == "exported":
        size = f"{args.size}x{args.size}"
        export = ["-m", "dossr_jax.export", args.model, "--output", folder / "programs"]
        measure([*export, "--sizes", size], folder / "cache")
        flags = ["--programs", folder / "programs"]
    if case in ("warm", "exported"):
        once(args.repeats, folder / "cache", *flags)
    caches = [folder / (f"cache{i}" if case == "empty" else "cache") for i in range(args.repeats)]
    return [once(i, cache, *flags) for i, cache in enumerate(caches)]


def summarise(case: str, args: argparse.Namespace, runs: Any) -> dict[str, Any]:
    """A case's line."""
    wall, cpu, memory = zip(*runs, strict=True)
    return {
        "case": case,
        "model": args.model,
        "size": args.size,
        "min_s": round(min(wall), 3),
        "median_s": round(statistics.median(wall), 3),
        "all_s": [round(seconds, 3) for seconds in wall],
        "cpu_s": round(min(cpu), 3),
        "peak_bytes": max(memory),
        "platform": os.environ.get("JAX_PLATFORMS") or "default",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(summarise(case, args, run(case, args, Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
