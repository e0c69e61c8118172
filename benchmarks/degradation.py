"""Images degraded per second: the package, OpenCV with NumPy, and PyTorch, on the same cores.

    python benchmarks/degradation.py --preset realesrgan --size 512 --batch 16 --repeats 10

One JSON line per preset: images per second of each (the fastest of the repeats, alternating
after a warm-up), ratios, device and versions. All carry out the same plans; the package's time
includes drawing them. On a CPU the package has a device for each core, as OpenCV has a thread
(--devices 1: one for all). On an accelerator, or with --alone, the package runs alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from dossr_jax import parallel
from dossr_jax.data.degradation import PRESETS, choose_presets, degrade
from dossr_jax.data.degradation.plan import draw_plan


def make_photos(size: int, batch: int) -> np.ndarray:
    """Images (b, size, size, 3) with detail of all sizes, as photos have."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((batch, 3, size, size)), axes=(2, 3))
    images = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / size) ** 1.2, axes=(2, 3))
    images /= 4 * images.std(axis=(2, 3), keepdims=True)
    images = np.clip(images + 0.5, 0, 1).astype(np.float32)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def make_calls(preset: str, photos: np.ndarray, alone: bool) -> tuple[dict[str, Any], float]:
    """Calls that degrade all photos, by name, and seconds to compile the package's."""
    presets = choose_presets([preset])
    mesh = parallel.make_mesh(fsdp=1)
    split = parallel.batch_sharding(mesh)
    keys, images = jax.device_put((jax.random.split(jax.random.key(0), len(photos)), photos), split)
    program = functools.partial(degrade, presets=presets)
    program = jax.jit(parallel.on_each_device(program, mesh))
    start = time.perf_counter()
    program = program.lower(keys, images).compile()
    compile_s = time.perf_counter() - start
    calls = {"jax": lambda: jax.block_until_ready(program(keys, images))}
    if not alone:
        from degradation_baselines import run_opencv, run_torch

        shape = photos.shape[1:3]
        plans = jax.jit(jax.vmap(lambda key: draw_plan(key, presets, shape)))(keys)
        plans = jax.tree.map(np.asarray, plans)
        plans = [jax.tree.map(lambda a, i=i: a[i], plans) for i in range(len(photos))]
        threads = os.cpu_count()
        blue_first = np.ascontiguousarray(photos[..., ::-1])
        planes = np.ascontiguousarray(photos.transpose(0, 3, 1, 2))
        calls["opencv"] = functools.partial(run_opencv, plans, blue_first, threads)
        calls["torch"] = functools.partial(run_torch, plans, planes, threads)
    return calls, compile_s


def measure(calls: dict[str, Any], repeats: int) -> dict[str, float]:
    """Shortest seconds of each call, alternating, after one warm-up call each."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(0.2)  # the others' idle threads spin for a while
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=(*PRESETS, "all"), default="realesrgan")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="of a CPU")
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", args.devices)
    device = jax.devices()[0]
    photos = make_photos(args.size, args.batch)
    alone = args.alone or device.platform != "cpu"
    for preset in PRESETS if args.preset == "all" else [args.preset]:
        calls, compile_s = make_calls(preset, photos, alone)
        seconds = measure(calls, args.repeats)
        line = {"preset": preset}
        line |= {f"{name}_images_per_s": round(args.batch / s, 1) for name, s in seconds.items()}
        line |= {
            f"ratio_to_{name}": round(s / seconds["jax"], 2)
            for name, s in seconds.items()
            if name != "jax"
        }
        line |= {
            "size": args.size,
            "batch": args.batch,
            "repeats": args.repeats,
            "compile_s": round(compile_s, 1),
            "device": str(device.device_kind),
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
        }
        if not alone:
            line |= {"opencv": version("opencv-python-headless"), "torch": version("torch")}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
