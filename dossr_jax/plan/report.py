"""Compiles a program for a slice and says what one of its devices will hold, do and send."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from dossr_jax.plan import hlo
from dossr_jax.plan.chips import GIB, Slice
from dossr_jax.plan.programs import Program, costs, count_flops

# XLA searches tilings for every convolution, which takes nine tenths of the time to compile and
# changes neither what is computed nor, but for a few percent, the memory.
_QUICK = {"exec_time_optimization_effort": -1.0}
_VERSIONS = ("jax", "jaxlib", "libtpu", "flax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; sizes in bytes, times in seconds, all of one device and one run.

    Attributes:
      arguments: by what they are. temporaries: activations and whatever else lives within a run.
      memory: all that is taken at once, None where XLA's refusal did not say.
      peak: XLA's own figure of the most that is in use at a time.
      flops: operations of the compiled program; those of recomputed parts count again.
      traffic: bytes that operations read and write, by XLA's count, which takes the body of the
        solver's loop once.
      seconds: of tracing, lowering and compiling.
      refusal: why there is no program. crashed: for the compiler's own sake, which says nothing
        about larger and smaller ones.
    """

    topology: str
    chip: str
    devices: int
    samples: int
    hbm: float
    usable: float
    fits: bool
    arguments: Mapping[str, float]
    temporaries: float | None = None
    new_outputs: float | None = None
    code: float | None = None
    memory: float | None = None
    peak: float | None = None
    flops: float | None = None
    traffic: float | None = None
    collectives: Mapping[str, hlo.Collective] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    effort: str
    seconds: Mapping[str, float]
    refusal: str | None = None
    crashed: bool = False

    @property
    def bound(self) -> float | None:
        """Seconds that a run takes at least, if XLA's counts hold; None where no peak is known."""
        return max(self.bounds.values(), default=None)

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the versions that it holds for, ready for JSON."""
        return dataclasses.asdict(self) | {
            "bound": self.bound,
            "samples_per_second_at_most": self.samples / self.bound if self.bound else None,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Installed versions of what a report depends on."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plan(program: Program, target: Slice, *, quick: bool = True) -> Report:
    """Compile a program for a slice, ahead of time, and account for it.

    A program that XLA refuses for its size gives a report that says so; other errors pass.

    Args:
      quick: let XLA search less, for memory and counts instead of speed.
    """
    seconds = {}
    common: dict[str, Any] = _known_before(program, target, quick) | {"seconds": seconds}
    with _timed(seconds, "trace"):
        traced = program.trace()
    with _timed(seconds, "lower"):
        lowered = traced.lower()
    try:
        with _timed(seconds, "compile"):
            compiled = lowered.compile(
                compiler_options=_QUICK if quick and target.platform == "tpu" else None
            )
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip()
        if not hlo.out_of_memory(message):
            raise
        wanted, refusal = hlo.memory_wanted(message), message.splitlines()[0]
        return Report(**common, memory=wanted, fits=False, refusal=refusal)
    flops, traffic = costs(compiled.cost_analysis())
    if program.body is None:
        flops, traffic = (n and n * program.repeats for n in (flops, traffic))
    elif flops is not None:
        once = count_flops(program.body(), target.platform)
        flops += (program.repeats - 1) * once
    exchanged = hlo.collectives(compiled.as_text(), len(target.devices))
    stats = compiled.memory_analysis()
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = (
        stats.argument_size_in_bytes
        + new_outputs
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    return Report(
        **common,
        temporaries=stats.temp_size_in_bytes,
        new_outputs=new_outputs,
        code=stats.generated_code_size_in_bytes,
        memory=memory,
        peak=stats.peak_memory_in_bytes or None,
        fits=memory <= target.chip.usable,
        flops=flops,
        traffic=traffic,
        collectives=exchanged,
        bounds=_bounds(target, flops, traffic, sum(c.sent for c in exchanged.values())),
    )


def crashed(program: Program, target: Slice, *, quick: bool) -> Report:
    """Report of a program at which the compiler crashed, in place of `plan`'s."""
    known = _known_before(program, target, quick)
    reason = "the compiler crashed, or took all of this host's memory"
    return Report(**known, seconds={}, fits=False, crashed=True, refusal=reason)


def _known_before(program: Program, target: Slice, quick: bool) -> dict[str, Any]:
    """What a report says that needs no compiler."""
    return {
        "topology": target.topology,
        "chip": target.chip.name,
        "devices": len(target.devices),
        "samples": program.samples,
        "hbm": target.chip.hbm,
        "usable": target.chip.usable,
        "arguments": {name: device_bytes(tree) for name, tree in program.arguments.items()},
        "effort": "quick" if quick else "full",
    }


def device_bytes(tree: Any) -> float:
    """Bytes that a tree of laid-out shapes takes on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _bounds(
    target: Slice, flops: float | None, traffic: float | None, sent: float
) -> dict[str, float]:
    """Least seconds by what limits them."""
    chip = target.chip
    pairs = {
        "arithmetic": (flops, chip.flops),
        "memory": (traffic, chip.bandwidth),
        "links": (sent, chip.interconnect),
    }
    return {name: work / rate for name, (work, rate) in pairs.items() if work and rate}


class _timed:
    """Notes how long its block takes."""

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._name] = round(time.perf_counter() - self._start, 1)


def remedy(report: Report, settings: Mapping[str, Any]) -> str:
    """What to change so that a program that does not fit does, most promising first.

    Args:
      settings: of the job: batch, fsdp and remat where it trains.
    """
    ways, each = [], report.samples // report.devices
    if settings.get("remat", "full") != "full":
        ways.append("recompute more (--set parallel.remat=full)")
    if each > 1:
        ways.append(f"a smaller batch (--batch {report.devices * max(1, each // 2)})")
    fsdp = settings.get("fsdp")
    state = sum(report.arguments.get(name, 0) for name in ("parameters", "average", "optimizer"))
    if fsdp is not None and fsdp < report.devices and state > GIB / 4:
        ways.append(f"more fsdp (--set parallel.fsdp={min(report.devices, 2 * fsdp)})")
    return " or ".join(ways) or "smaller images (--size) or a chip with more memory"
