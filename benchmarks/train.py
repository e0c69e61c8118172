"""How fast the training step runs on the devices at hand, and how much memory it takes.

    python benchmarks/train.py --search                                   # a GPU or TPU
    python benchmarks/train.py --batch 1 --dtype float32 --steps 2        # any machine of 24 GB

One line of JSON a batch: seconds of a step (the shortest), images/s, seconds to compile, peak
memory, losses, and the part of the device's peak that the arithmetic reaches. The peak is measured
in the same run with a large product of matrices; operations are those that a sample needs, what is
recomputed not counted again. Weights and images are random, the code is the trainer's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import draw, matmul_peak, peak_memory, surroundings

from dossr_jax import parallel
from dossr_jax.config import TrainConfig
from dossr_jax.plan import sample_flops
from dossr_jax.training.experiments import load_config
from dossr_jax.training.state import TrainState, abstract_run
from dossr_jax.training.step import make_train_step


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="sd21_dossr")
    parser.add_argument("--batch", type=int, help="samples per step (default: one per device)")
    parser.add_argument("--search", action="store_true", help="double it until memory ends")
    parser.add_argument("--steps", type=int, default=10, help="steps to run at each batch")
    parser.add_argument("--size", type=int, help="side of a crop in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all but masters")
    parser.add_argument("--remat", choices=("none", "dots", "full"))
    parser.add_argument("--fsdp", type=int)
    return parser.parse_args(argv)


def make_config(args: argparse.Namespace, batch: int) -> TrainConfig:
    """The named configuration with the command line's changes."""
    config = load_config(args.config)
    wanted = {
        "dtype": args.dtype,
        "frozen_dtype": args.dtype,
        "remat": args.remat,
        "fsdp": args.fsdp,
    }
    changes = {name: value for name, value in wanted.items() if value is not None}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch=batch, crop=args.size or config.data.crop),
        optimizer=dataclasses.replace(config.optimizer, microbatches=1),
        parallel=dataclasses.replace(config.parallel, **changes),
    )


def random_state(state: TrainState) -> TrainState:
    """Arrays for the shapes of a run's state: random parameters, everything else at its start."""
    rng = np.random.default_rng(0)

    def parameters(tree: dict[str, Any]) -> dict[str, jax.Array]:
        return {
            name: parallel.put(draw(name, leaf.shape, rng).astype(leaf.dtype), leaf.sharding)
            for name, leaf in tree.items()
        }

    def zeros(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), tree)

    learn = parameters(state.learn)
    return TrainState(
        step=zeros(state.step),
        key=zeros(state.key),
        learn=learn,
        ema=jax.tree.map(jnp.copy, learn) if state.ema else {},
        opt_state=zeros(state.opt_state),
        frozen=parameters(state.frozen),
    )


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    batch, crop = config.data.batch, config.data.crop
    hr = rng.integers(0, 256, (batch, crop, crop, 3), np.uint8)
    return {"hr": hr, "id": np.arange(batch, dtype=np.uint32)}


def run(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Compile the step and run it."""
    mesh = parallel.make_mesh(config.parallel.fsdp)
    parallel.check_batch(config.data.batch, 1, mesh)
    abstract = abstract_run(config, mesh)
    batch = parallel.put_batch(random_batch(config), mesh)
    start = time.perf_counter()
    lowered = make_train_step(config, abstract.graphdef, mesh).lower(abstract.state, batch)
    step = lowered.compile()
    del lowered
    gc.collect()
    compile_s = time.perf_counter() - start
    state, seconds, losses = random_state(abstract.state), [], []
    for _ in range(steps):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    stats = step.memory_analysis()
    planned = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    return {
        "planned_bytes": planned,
        "compile_s": round(compile_s, 1),
        "step_s": round(min(seconds), 4),
        "steps_s": [round(s, 4) for s in seconds],
        "losses": losses,
        "finite": bool(np.isfinite(losses).all()),
        **peak_memory(),
    }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for every batch that fits."""
    devices = jax.device_count()
    batch = args.batch or devices
    needed = None
    while True:
        config = make_config(args, batch)
        try:
            result = run(config, args.steps)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not args.search or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return
        peak = matmul_peak(config.parallel.dtype)
        needed = needed or sample_flops(config)  # afterwards: tracing takes memory too
        rate = batch / result["step_s"]
        yield {
            "config": args.config,
            "batch": batch,
            "size": config.data.crop,
            **dataclasses.asdict(config.parallel),
            "images_per_s": round(rate, 4),
            **result,
            "flops_per_sample": needed,
            "peak_flops_measured": peak,
            "fraction_of_peak": round(needed * rate / (peak * devices), 4),
            **surroundings("optax"),
        }
        if not args.search:
            return
        batch *= 2


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    for line in measure(parse_args(argv)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
