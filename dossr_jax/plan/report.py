"""Compiles a program for a slice and says what one of its devices will hold, do and send."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from dossr_jax.plan import hlo
from dossr_jax.plan.chips import Slice
from dossr_jax.plan.kernels import LAUNCH_SECONDS, Kernels, count_kernels, count_launches
from dossr_jax.plan.programs import Program, count_flops, restoring_flops

# XLA searches tilings for every convolution, which takes nine tenths of the time to compile and
# changes neither what is computed nor, but for a few percent, the memory.
_QUICK = {"exec_time_optimization_effort": -1.0}
# XLA's list of what a GPU's program runs.
_THUNKS = "*thunk_sequence_after_thunk_passes.txt"
_VERSIONS = ("jax", "jaxlib", "libtpu", "jax_cuda12_plugin", "flax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; sizes in bytes, times in seconds, all of one device and one run.

    Attributes:
      arguments: bytes by what they are. temporaries: activations and all else that lives within
        a run.
      memory: all that is allocated, None where XLA's refusal did not say.
      peak: XLA's own figure of the most that is in use at a time.
      flops: operations of the compiled program; recomputed ones count again.
      traffic: bytes that operations read and write, by XLA's count, which takes the body of the
        solver's loop once.
      kernels: of a GPU's program by kind; traffic is the sum of their bytes. launches: by the host,
        a CUDA graph as one.
      bounds: least time of a run by what limits it.
      seconds: of tracing, lowering and compiling.
      refusal: why there is no program. crashed: the compiler itself failed, which says nothing
        about larger and smaller programs.
    """

    topology: str
    chip: str
    devices: int
    samples: int
    hbm: float
    usable: float
    fits: bool = False
    arguments: Mapping[str, float]
    temporaries: float | None = None
    new_outputs: float | None = None
    code: float | None = None
    memory: float | None = None
    peak: float | None = None
    flops: float | None = None
    traffic: float | None = None
    collectives: Mapping[str, hlo.Collective] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, Kernels] = dataclasses.field(default_factory=dict)
    launches: int | None = None
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    effort: str
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    refusal: str | None = None
    crashed: bool = False

    @property
    def bound(self) -> float | None:
        """Least time of a run, if XLA's counts hold; None where no peak is known."""
        return max(self.bounds.values(), default=None)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the versions that they hold for, ready for JSON."""
        return dataclasses.asdict(self) | {
            "bound": self.bound,
            "samples_per_second_at_most": self.samples / self.bound if self.bound else None,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Installed versions of what a report depends on."""
    return {name: version(name) for name in _VERSIONS if importlib.util.find_spec(name)}


def plan(program: Program, target: Slice, *, quick: bool = True) -> Report:
    """Compile a program for a slice, ahead of time, and account for it.

    A program that XLA refuses for its size gives a report that says so; other errors pass.

    Args:
      quick: let XLA search less, for memory and counts instead of speed.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        try:
            return stage()
        finally:
            seconds[name] = round(time.perf_counter() - begin, 1)

    report = dataclasses.replace(make_report(program, target, quick), seconds=seconds)
    lowered = timed("lower", timed("trace", program.trace).lower)
    options: dict[str, Any] = _QUICK if quick and target.platform == "tpu" else {}
    thunks = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            if target.platform == "cuda":
                options = {"xla_dump_to": folder}
                if target.autotuned is not None:
                    options["xla_gpu_load_autotune_results_from"] = str(target.autotuned)
            compiled = timed("compile", lambda: lowered.compile(compiler_options=options))
            for file in Path(folder).glob(_THUNKS):
                thunks = file.read_text()
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip()
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        wanted, refusal = hlo.memory_wanted(message), message.splitlines()[0]
        return dataclasses.replace(report, memory=wanted, refusal=refusal)
    analysis = compiled.cost_analysis() or {}
    flops, traffic = analysis.get("flops"), analysis.get("bytes accessed")
    if program.body is None:
        flops, traffic = (n and n * program.repeats for n in (flops, traffic))
    elif flops is not None:
        flops += (program.repeats - 1) * count_flops(program.body(), target.platform)
    text = compiled.as_text()
    exchanged = hlo.collectives(text, len(target.devices))
    kernels: dict[str, Kernels] = {}
    launches = None
    if target.platform == "cuda":
        kernels = count_kernels(text, steps=program.repeats)
        launches = count_launches(thunks, text, steps=program.repeats)
        traffic = sum(k.bytes for k in kernels.values())
        flops = restoring_flops(program, len(target.devices)) if program.body else None
    sent = sum(c.sent for c in exchanged.values())
    rates = {
        "arithmetic": (flops, target.chip.flops),
        "memory": (traffic, target.chip.bandwidth),
        "links": (sent, target.chip.interconnect),
        "launches": (launches, 1 / LAUNCH_SECONDS),
    }
    stats = compiled.memory_analysis()
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = (
        stats.argument_size_in_bytes
        + new_outputs
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    return dataclasses.replace(
        report,
        temporaries=stats.temp_size_in_bytes,
        new_outputs=new_outputs,
        code=stats.generated_code_size_in_bytes,
        memory=memory,
        peak=stats.peak_memory_in_bytes or None,
        fits=memory <= target.chip.usable,
        flops=flops,
        traffic=traffic,
        collectives=exchanged,
        kernels=kernels,
        launches=launches,
        bounds={name: work / rate for name, (work, rate) in rates.items() if work and rate},
    )


def make_report(program: Program, target: Slice, quick: bool) -> Report:
    """What a report says that needs no compiler."""
    return Report(
        topology=target.topology,
        chip=target.chip.name,
        devices=len(target.devices),
        samples=program.samples,
        hbm=target.chip.hbm,
        usable=target.chip.usable,
        arguments={name: _device_bytes(tree) for name, tree in program.arguments.items()},
        effort="quick" if quick else "full",
    )


def _device_bytes(tree: Any) -> float:
    """Bytes that a tree of laid-out shapes takes on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )
