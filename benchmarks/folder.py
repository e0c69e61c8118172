"""How much faster a folder of mixed pictures is than the same files one after the other.

    python benchmarks/folder.py --count 64 --repeats 2

One JSON line. The pictures are gradients with noise, 30 to 130 pixels per side, from a seed.
"Folder" is what the command line does after its checks: read, restore, write, with the next batch
prepared beside the device. "One at a time" reads, restores with batch 1, and writes each file
before the next. Both run in this process, are warmed up and then alternate; the shortest counts.
`programs` is how many the folder compiles. `device_idle` is the share of the folder's time, from
the first program's start to the last one's end, in which no program runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dossr_jax import files
from dossr_jax.compilation import keep_programs
from dossr_jax.errors import UserError
from dossr_jax.folder.finding import Problems, find
from dossr_jax.folder.manifest import Manifest, Parameters
from dossr_jax.folder.naming import Naming, name_results
from dossr_jax.folder.planning import plan
from dossr_jax.folder.progress import Progress
from dossr_jax.folder.run import Job, Run, Writing
from dossr_jax.pipeline import Settings, Upscaler, networks, restore_photos
from dossr_jax.restore import restore


class Watched:
    """Stands for `restore`, and notes when its programs begin and end on the device."""

    def __init__(self) -> None:
        self.lower = restore.lower
        self._spans: list[tuple[float, float]] = []
        self._threads: list[threading.Thread] = []

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = restore(*arguments)

        def wait() -> None:
            jax.block_until_ready(result)
            self._spans.append((began, time.perf_counter()))

        self._threads.append(threading.Thread(target=wait))
        self._threads[-1].start()
        return result

    def idle(self) -> float:
        """The share of the time between the first and the last in which none ran."""
        for thread in self._threads:
            thread.join()
        spans = sorted(self._spans)
        busy, end = 0.0, spans[0][0]
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return 1 - busy / (end - spans[0][0])


def make_pictures(folder: Path, count: int, least: int, most: int) -> None:
    """Write pictures of mixed sizes."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(rng.integers(least, most + 1, (count, 2))):
        y, x = np.mgrid[:height, :width]
        ramps = [np.abs(np.sin(a * x / 40 + b * y / 40)) for a, b in rng.uniform(0, 2, (3, 2))]
        pixels = 230 * np.stack(ramps, -1) + rng.normal(0, 6, (height, width, 3)) + 12
        photo = files.Photo(np.clip(pixels, 0, 255).astype(np.uint8))
        files.write_photo(folder / f"{i:03}.png", photo)


def run_folder(upscaler: Upscaler, settings: Settings, album: Path) -> None:
    """Restore a folder as the command line does."""
    with tempfile.TemporaryDirectory() as output:
        problems, manifest = Problems(), Manifest(Path(output))
        found = find([str(album)], Path(output), problems)
        names = name_results(found, Naming("{stem}", "png", {}), Path(output), (), problems)
        parameters = Parameters("model", "", {})
        tasks = plan(
            found.inputs, names, manifest, parameters, scale=settings.scale, overwrite=False
        )
        job = Job(manifest.folder, settings, parameters, Writing())
        with (
            manifest.writing({manifest.folder}),
            Progress(tasks, manifest.folder, manifest.put) as progress,
        ):
            Run(upscaler, job, manifest.put, progress.done).run(tasks)
        assert not progress.outcome.failed and not problems


def run_one_by_one(upscaler: Upscaler, settings: Settings, album: Path) -> None:
    """Restore file after file."""
    with tempfile.TemporaryDirectory() as output:
        for path in sorted(album.iterdir()):
            ((_, result),) = restore_photos(upscaler, [(0, files.read_photo(path))], settings)
            assert not isinstance(result, UserError)
            files.write_photo(Path(output) / path.name, result.photo)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times, programs and idle time of both ways."""
    upscaler = Upscaler.from_pretrained(args.model, dtype=args.dtype)
    batched = upscaler.settings(batch_size=args.batch_size)
    single = upscaler.settings(batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        album = Path(folder)
        make_pictures(album, args.count, args.least, args.most)
        restore.clear_cache()
        began = time.perf_counter()
        run_folder(upscaler, batched, album)
        first, programs = time.perf_counter() - began, restore._cache_size()
        run_one_by_one(upscaler, single, album)
        folders, singles, idle = [], [], []
        for _ in range(args.repeats):
            watched = networks.restore = Watched()
            began = time.perf_counter()
            run_folder(upscaler, batched, album)
            folders.append(time.perf_counter() - began)
            idle.append(watched.idle())
            networks.restore = restore
            began = time.perf_counter()
            run_one_by_one(upscaler, single, album)
            singles.append(time.perf_counter() - began)
    return {
        "case": "folder",
        "pictures": args.count,
        "sides": [args.least, args.most],
        "batch_size": args.batch_size,
        "programs": programs,
        "first_s": round(first, 2),
        "folder_s": round(min(folders), 2),
        "one_at_a_time_s": round(min(singles), 2),
        "throughput_ratio": round(min(singles) / min(folders), 3),
        "device_idle": round(min(idle), 4),
        "model": args.model,
        "dtype": args.dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in ("jax", "numpy", "pillow")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini", help="as for infer.py")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--count", type=int, default=64, help="pictures")
    parser.add_argument("--least", type=int, default=30, help="shortest side in pixels")
    parser.add_argument("--most", type=int, default=130, help="longest side in pixels")
    parser.add_argument(
        "--batch-size",
        type=lambda text: text if text == "auto" else int(text),
        default="auto",
        help="of the folder (default: auto)",
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each")
    parser.add_argument("--keep-programs", action="store_true", help="as infer.py does")
    args = parser.parse_args(argv)
    if args.keep_programs:
        keep_programs()
    print(json.dumps(measure(args)), flush=True)


if __name__ == "__main__":
    main()
