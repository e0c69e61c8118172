"""How fast training samples come, and what of a training step is spent waiting for them.

    python benchmarks/input.py --data DATA --config mini_dossr
    python benchmarks/input.py --data DATA --config mini_dossr --train 30

DATA is anything that train.py takes. One line of JSON a case. "stream" reads batches alone, once
in the process itself (and its CPU time a batch) and once by as many workers as the configuration
names. "train" runs real training steps from random weights; each is waited for before the
next batch is asked for, so that `waiting`, the share of the time spent in asking, is time in which
the device had nothing to do. (A loop that runs ahead of the device waits less.)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dossr_jax.config import DataConfig, TrainConfig
from dossr_jax.data.pipeline import Batches
from dossr_jax.data.sources import Source, open_source
from dossr_jax.training.experiments import load_config
from dossr_jax.training.state import start_run
from dossr_jax.training.step import make_train_step

_PARTS = 5  # parts a stream is timed in: the fastest tells the machine's own speed


def measure_stream(source: Source, config: DataConfig, batches: int) -> dict[str, Any]:
    """Batches per second, of the fastest part and of all, and CPU time where no workers hide it."""
    count = max(1, batches // _PARTS)
    with Batches(source, config, seed=0) as stream:
        began = time.perf_counter()
        next(stream)
        first = time.perf_counter() - began
        # What was read ahead meanwhile is not to count.
        for _ in range(2 * config.prefetch + config.workers):
            next(stream)
        seconds, cpu = [], []
        for _ in range(_PARTS):
            began, used = time.perf_counter(), time.process_time()
            for _ in range(count):
                next(stream)
            seconds.append((time.perf_counter() - began) / count)
            cpu.append((time.process_time() - used) / count)
        result = {
            "batches_per_s": round(1 / min(seconds), 2),
            "batches_per_s_mean": round(_PARTS / sum(seconds), 2),
            "images_per_s": round(config.batch / min(seconds), 1),
            "first_s": round(first, 2),
            "skipped": len(stream.skipped),
        }
        if config.workers == 0:
            result["cpu_ms_per_batch"] = round(1000 * min(cpu), 1)
    return result


def measure_training(source: Source, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Seconds a step and the share of them that the device waits for data."""
    import jax

    from dossr_jax import parallel

    mesh = parallel.make_mesh(config.parallel.fsdp)
    with Batches(source, config.data, seed=0) as stream:
        first = next(stream)
        run = start_run(config, None, mesh, lambda: first["hr"])
        step = make_train_step(run.config, run.graphdef, mesh)
        state, metrics = step(run.state, parallel.put_batch(first, mesh))
        jax.block_until_ready(metrics)
        waited, seconds = [], []
        for _ in range(steps):
            before, began = stream.waited, time.perf_counter()
            state, metrics = step(state, parallel.put_batch(next(stream), mesh))
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
            waited.append(stream.waited - before)
    return {
        "steps": steps,
        "step_s": round(sum(seconds) / steps, 4),
        "step_s_min": round(min(seconds), 4),
        "waiting": round(sum(waited) / sum(seconds), 4),
        "device": jax.devices()[0].device_kind,
        "jax": version("jax"),
    }


def cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    config = load_config(args.config)
    changes = {n: getattr(args, n) for n in ("workers", "prefetch") if getattr(args, n) is not None}
    data = dataclasses.replace(config.data, **changes)
    source = open_source(args.data, split="train", hold_out=data.hold_out)
    about = {
        "config": args.config,
        "source": type(source).__name__.lower(),
        "images": len(source),
        "batch": data.batch,
        "crop": data.crop,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in ("grain", "pillow", "numpy")},
    }
    if args.train:
        config = dataclasses.replace(config, data=data)
        result = measure_training(source, config, args.train)
        yield {"case": "train", "workers": data.workers, **result, **about}
        return
    for workers in dict.fromkeys((0, data.workers)):
        settings = dataclasses.replace(data, workers=workers)
        result = measure_stream(source, settings, args.batches)
        yield {"case": "stream", "workers": workers, **result, **about}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what to read, as for train.py")
    parser.add_argument("--config", default="mini_dossr")
    parser.add_argument("--batches", type=int, default=50, help="batches to time")
    parser.add_argument(
        "--train", type=int, default=0, metavar="STEPS", help="training steps to run"
    )
    parser.add_argument("--workers", type=int, help="instead of the configuration's")
    parser.add_argument("--prefetch", type=int, help="instead of the configuration's")
    for line in cases(parser.parse_args(argv)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
