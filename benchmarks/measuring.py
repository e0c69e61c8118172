"""What the benchmarks share: random weights, times, the device's peak and memory, where it ran."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import weights

M = TypeVar("M", bound=nnx.Module)
_MATMULS = 8
_REPEATS = 5
_PAUSE = 0.3  # seconds; on a CPU the other library's idle threads spin for a while


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values of a parameter, float32; gains are 1, kernels keep the scale of their input."""
    if name.endswith("scale"):
        return np.ones(shape, np.float32)
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(np.prod(shape[:-1], initial=1) ** -0.5)
    return values


def fill_randomly(module: M, seed: int = 0) -> M:
    """Give a module without arrays random ones, one after the other."""
    rng = np.random.default_rng(seed)

    def lazy(name: str, shape: tuple[int, ...]) -> weights.Lazy:
        return weights.Lazy(shape, np.dtype(np.float32), lambda: draw(name, shape, rng))

    tensors = {name: lazy(name, param.shape) for name, param in weights.names_and_params(module)}
    weights.fill(module, tensors, "random")
    return module


def jitted(fn: Callable[..., Any], *modules: nnx.Module) -> Callable[..., Any]:
    """fn(*modules, *arrays), compiled, as a function of the arrays.

    Its attribute `trace` traces it for arrays of these shapes, on no particular device.
    """
    graphdefs, states = zip(*(nnx.split(module) for module in modules), strict=True)

    @jax.jit
    def run(states: Any, *arrays: Any) -> Any:
        return fn(*map(nnx.merge, graphdefs, states), *arrays)

    def call(*arrays: Any) -> Any:
        return run(states, *arrays)

    def trace(*arrays: Any) -> Any:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (states, *arrays))
        return run.trace(*shapes)

    call.trace = trace  # pyright: ignore
    return call


class Times(NamedTuple):
    """Seconds of every run of a call: of the clock, and of this process's processors.

    What else runs on the machine disturbs the latter less; of a GPU it is the host's share.
    """

    wall: list[float]
    cpu: list[float]

    def fields(self, prefix: str) -> dict[str, float]:
        """Fields of a line: the shortest run, the median, and the least of the processors."""
        return {
            f"{prefix}_s": round(min(self.wall), 5),
            f"{prefix}_median_s": round(statistics.median(self.wall), 5),
            f"{prefix}_cpu_s": round(min(self.cpu), 5),
        }


def alternate(
    calls: Mapping[str, Callable[[], Any]], repeats: int, pause: float = _PAUSE
) -> dict[str, Times]:
    """Times of each call, one after the other in turn, after a warm-up of each.

    A call returns when its result is there; arrays of JAX are waited for.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: Times([], []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(pause if len(calls) > 1 else 0)
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def matmul_peak(dtype: str) -> float:
    """Operations per second of one device in a large matrix product."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((side, side), 1 / side, dtype)

    @jax.jit
    def products(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _MATMULS, lambda _, x: x @ a, a)

    seconds = min(alternate({"products": lambda: products(a)}, _REPEATS)["products"].wall)
    return _MATMULS * 2 * side**3 / seconds


def peak_memory() -> dict[str, Any]:
    """Most bytes in use so far: of a device, or of this process where devices do not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_bytes": stats["peak_bytes_in_use"], "peak_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_bytes": used, "peak_of": "process"}


def surroundings(*packages: str) -> dict[str, Any]:
    """Device, cores and versions: the end of every line."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", *packages)},
    }
