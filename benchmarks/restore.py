"""How fast restoring runs on the devices at hand, and how far it is from what they can do.

    python benchmarks/restore.py --dtype bfloat16 --batches 1 4 16 --parts --profile trace   # a GPU
    python benchmarks/restore.py --config tiny --size 128                           # any machine

One line of JSON per batch size: seconds to compile, seconds of a batch by the compiled program and
by Upscaler, from arrays to arrays on the host (the shortest of the repeats and the median), images
per second, operations per second as part of the peak that a large matrix product reaches in the
same run, memory. --parts adds a line per part of the program, compiled on its own: pre-restorer,
encoder, a step of the solver, decoder, and what follows it. --profile keeps a trace of one batch
for TensorBoard or Perfetto, and prints what takes longest in it.

The program is the one that infer.py runs, on one device; where JAX_COMPILATION_CACHE_DIR names a
folder, it may be there already. Weights are random, unless --model names a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measuring import alternate, fill_randomly, jitted, matmul_peak, peak_memory, surroundings
from profiles import top_kernels

from dossr_jax import systems
from dossr_jax.area_means import keep_area_means
from dossr_jax.commands import command_line
from dossr_jax.config import MAX_STEPS, LatentConfig
from dossr_jax.diffusion.solver import cast, pad_table
from dossr_jax.errors import UserError
from dossr_jax.image import color_fix, levels_to_pixels, pixels_to_levels
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.pipeline import DTYPES, Upscaler
from dossr_jax.plan.programs import check_size, count_flops, restore_program, restoring_flops
from dossr_jax.training.experiments import load_config

_SEED = 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config", default="sd21_dossr", help="its model, with random weights")
    what.add_argument("--model", help="a file, or the name of a model that comes with the package")
    parser.add_argument("--size", type=int, default=512, help="side of the result (default: 512)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1], help="images at once (default: 1)"
    )
    parser.add_argument("--steps", type=int, help="of the solver (default: the model's)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each (default: 10)")
    parser.add_argument("--parts", action="store_true", help="time the parts of the program, too")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="keep a trace there")
    return parser.parse_args(argv)


def make_model(args: argparse.Namespace) -> Any:
    """The networks, of a file or random, with --steps in their sampler."""
    if args.model is not None:
        model = Upscaler.from_pretrained(args.model, dtype=args.dtype).model
    else:
        config, dtype = load_config(args.config).model, DTYPES[args.dtype]
        model = systems.abstract_model(config, dtype=dtype, param_dtype=dtype)
    if args.steps is not None:
        if not systems.system_of(model.config).samples:
            raise UserError(f"--steps {args.steps}: this model takes no steps; leave it out")
        sampler = dataclasses.replace(model.config.sampler, steps=args.steps)
        model.config = dataclasses.replace(model.config, sampler=sampler)
    check_size(model.config, args.size)
    if args.parts and not isinstance(model, DoSSR):
        raise UserError("--parts: only DoSSR's are known here; leave it out")
    return model if args.model is not None else fill_randomly(model)


def draw_images(batch: int, size: int) -> np.ndarray:
    """LR images, uint8 (b, h, w, 3)."""
    side = size // UPSCALE
    return np.random.default_rng(_SEED).integers(0, 256, (batch, side, side, 3), np.uint8)


def make_arguments(model: Any, images: np.ndarray) -> tuple[Any, ...]:
    """What the compiled program of dossr_jax.plan.restore_program takes, on the device."""
    system, table, controls = systems.system_of(model.config), None, None
    if system.table is not None:
        table = system.table(model.config, system.sampler(model.config))
        table = cast(pad_table(table, MAX_STEPS), np.float32)
        controls = jax.tree.map(np.float32, Controls())
        if isinstance(model.config, LatentConfig):
            contexts = model.context[...], model.negative_context[...]
            controls = dataclasses.replace(
                controls, context=contexts[0], negative_context=contexts[1]
            )
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    keys = jax.vmap(jax.random.key)(np.full(len(images), _SEED, np.uint32))
    noise = KeyNoise(keys, np.zeros((len(images), 2), np.int32))
    tiles, count = np.zeros((0, 3), np.int32), np.int32(0)
    return jax.device_put(
        (nnx.state(model), images, sizes, tiles, count, noise, table, controls), jax.devices()[0]
    )


class Part(NamedTuple):
    """A part of a restoration: fn(model, *arrays), `runs` times per restoration."""

    fn: Callable[..., Any]
    arrays: Sequence[Any]
    runs: int = 1


def make_parts(model: DoSSR, batch: int, size: int) -> dict[str, Part]:
    """The parts of restoring with DoSSR."""
    config = model.config
    rng = np.random.default_rng(_SEED)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((batch, *shape), np.float32)

    def finish(_: DoSSR, image: Any, reference: Any, lr: Any, sizes: Any) -> Any:
        fixed = color_fix(config.sampler.color_fix, image, reference, UPSCALE * sizes)
        return pixels_to_levels(keep_area_means(fixed, lr, sizes))

    lr = draw_images(batch, size)
    small = np.asarray(levels_to_pixels(jnp.asarray(lr)))
    image, other = (rng.uniform(size=(batch, size, size, 3)).astype(np.float32) for _ in range(2))
    side = size // config.vae.downscale
    latent = side, side, config.vae.z_channels
    t, context = np.full(batch, 499.0, np.float32), normal(*model.context.shape)
    sizes = np.full((batch, 2), size // UPSCALE, np.int32)
    return {
        "pre_restore": Part(DoSSR.pre_restore, [small]),
        "encode": Part(DoSSR.encode, [image]),
        "step": Part(
            DoSSR.predict_noise,
            [normal(*latent), t, context, normal(*latent)],
            config.sampler.steps * (2 if config.sampler.cfg_scale != 1 else 1),
        ),
        "decode": Part(
            DoSSR.decode, [normal(*latent)], 2 if config.sampler.color_fix == "residual" else 1
        ),
        "finish": Part(finish, [image, other, small, sizes]),
    }


def measure_parts(
    model: DoSSR, batch: int, size: int, repeats: int, peak: float
) -> Iterator[dict[str, Any]]:
    """A line per part."""
    for name, part in make_parts(model, batch, size).items():
        call, arrays = jitted(part.fn, model), jax.device_put(part.arrays)
        times = alternate({"run": lambda call=call, arrays=arrays: call(*arrays)}, repeats)["run"]
        flops = count_flops(call.trace(*part.arrays))  # pyright: ignore
        yield {
            "part": name,
            "batch": batch,
            "size": size,
            **times.fields("part"),
            "runs": part.runs,
            "all_runs_s": round(part.runs * min(times.wall), 5),
            "flops": flops,
            "least_s_at_peak": round(flops / peak, 5),
            "fraction_of_peak": round(flops / peak / min(times.wall), 4),
        }


def measure(
    model: Any, args: argparse.Namespace, batch: int, peak: float, flops: float
) -> dict[str, Any]:
    """A batch size: the compiled program, and Upscaler with all that it does on the host."""
    images, device = draw_images(batch, args.size), jax.devices()[:1]
    start = time.perf_counter()
    program = restore_program(model.config, device, batch, size=args.size, dtype=args.dtype)
    compiled = program.trace().lower().compile()
    compile_s = time.perf_counter() - start
    planned = compiled.memory_analysis()
    arguments = make_arguments(model, images)
    upscaler = Upscaler(model, devices=device)
    calls = {
        "program": lambda: compiled(*arguments),
        "upscaler": lambda: upscaler.restore(list(images), batch_size=batch),
    }
    times = alternate(calls, args.repeats, pause=0)
    finite = bool(np.asarray(compiled(*arguments).finite).all())
    seconds = min(times["program"].wall)
    if args.profile is not None:
        with jax.profiler.trace(str(args.profile)):
            jax.block_until_ready(compiled(*arguments))
    return {
        "compile_s": round(compile_s, 1),
        **times["program"].fields("program"),
        **times["upscaler"].fields("upscaler"),
        "images_per_s": round(batch / seconds, 4),
        "upscaler_images_per_s": round(batch / min(times["upscaler"].wall), 4),
        "flops_per_image": flops,
        "flops_per_s": batch * flops / seconds,
        "peak_flops_measured": peak,
        "fraction_of_peak": round(batch * flops / seconds / peak, 4),
        "planned_bytes": planned.argument_size_in_bytes + planned.temp_size_in_bytes,
        **peak_memory(),
        "finite": finite,
    }


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All lines."""
    model = make_model(args)
    peak = matmul_peak(args.dtype)
    alone = restore_program(model.config, jax.devices()[:1], 1, size=args.size, dtype=args.dtype)
    flops = restoring_flops(alone, 1)
    steps = getattr(getattr(model.config, "sampler", None), "steps", 0)
    which = {
        "model": args.model or args.config,
        "size": args.size,
        "steps": steps,
        "dtype": args.dtype,
        "repeats": args.repeats,
        **surroundings(),
    }
    for batch in args.batches:
        try:
            line = measure(model, args, batch, peak, flops)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"--batches {batch}: out of memory; give smaller ones") from error
        yield {"case": "restore", "batch": batch, **line, **which}
        if args.parts:
            for line in measure_parts(model, batch, args.size, args.repeats, peak):
                yield {"case": "part", **line, **which}
        if args.profile is not None:
            yield {"case": "profile", "batch": batch, "kernels": top_kernels(args.profile)}
        gc.collect()


@command_line("stopped")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            # The program is compiled once for each of the two ways in which it is called.
            jax.config.update("jax_compilation_cache_dir", folder)
        for line in run(args):
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
