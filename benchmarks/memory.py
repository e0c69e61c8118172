"""How much memory a picture takes, resident and on the device, by its size.

    python benchmarks/memory.py --sides 512 2048 8192

One JSON line per side of the result, each from a process of its own: a gradient with noise is
restored four times its size by the command line's path from file to file. `resident_mb` is the
process's peak, `programs_mb` the most that one program takes beside its arguments and the weights,
as XLA has planned it; it does not grow any more where pictures are restored in blocks. `device_mb`
is the device's own peak, where it tells one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

_MB = 2**20


def make_picture(path: Path, side: int, bits: int, alpha: bool) -> None:
    """Write a square picture."""
    from dossr_jax import files

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    planes = [np.abs(np.sin(x / (30 + 9 * c) + y / (50 - 7 * c))) for c in range(4 if alpha else 3)]
    share = 0.9 * np.stack(planes, -1) + rng.normal(0, 0.02, (side, side, 1)).astype(np.float32)
    pixels = np.round(np.clip(share, 0, 1) * (2**bits - 1)).astype(f"uint{bits}")
    files.write_photo(path, files.Photo(pixels))


def measure(side: int, options: Sequence[str], bits: int, alpha: bool) -> dict[str, Any]:
    """Restore a picture in this process."""
    import jax

    from dossr_jax import cli
    from dossr_jax.pipeline import memory, networks

    needed = []

    def note(program: Any, *arguments: Any) -> int:
        needed.append(planned(program, *arguments))
        return needed[-1]

    planned, networks.memory.needed_memory = memory.needed_memory, note
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        make_picture(path, -(-side // 4), bits, alpha)
        began = time.perf_counter()
        with open(os.devnull, "w") as told:
            sys.stdout, out = told, sys.stdout
            status = cli.main([str(path), "-o", str(Path(folder) / "out"), *options])
            sys.stdout = out
        seconds = time.perf_counter() - began
    stats = jax.devices()[0].memory_stats() or {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, on a Mac bytes
    return {
        "case": "memory",
        "side": side,
        "bits": bits,
        "alpha": alpha,
        "options": " ".join(options),
        "status": status,
        "seconds": round(seconds, 1),
        "resident_mb": round(peak / (_MB if sys.platform == "darwin" else 1024)),
        "programs": len(needed),
        "programs_mb": round(max(needed, default=0) / _MB),
        "device_mb": round(stats["peak_bytes_in_use"] / _MB) if stats else None,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in ("jax", "numpy", "pillow")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Other options are those of infer.py."
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="per channel")
    parser.add_argument("--alpha", action="store_true", help="with transparency")
    parser.add_argument("--in-process", action="store_true", help="of one side: start no other")
    args, options = parser.parse_known_args(argv)
    if args.in_process:
        print(json.dumps(measure(args.sides[0], options, args.bits, args.alpha)), flush=True)
        return
    for side in args.sides:
        command = [sys.executable, __file__, "--in-process", "--sides", str(side)]
        command += ["--bits", str(args.bits), *["--alpha"] * args.alpha, *options]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
