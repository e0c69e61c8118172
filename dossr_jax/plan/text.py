"""Reports in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dossr_jax.plan.chips import GIB
from dossr_jax.plan.report import Report
from dossr_jax.plan.search import largest_fit

# Of a report and its arguments.
_SIZES = {
    "parameters": "parameters that learn",
    "average": "EMA weights",
    "optimizer": "optimiser state",
    "frozen": "frozen parameters",
    "batch": "batch",
    "settings": "settings",
    "temporaries": "activations and other temporaries",
    "new_outputs": "outputs not in place",
    "code": "program",
    "memory": "all at once",
    "peak": "(highest at any time, by XLA)",
}


def tera(count: float) -> str:
    return f"{count / 1e12:.3g} TFLOP"


def _gib(size: float | None) -> str:
    return "?" if size is None else f"{size / GIB:8.3f} GiB"


def describe(report: Report, settings: Mapping[str, Any]) -> str:
    """A report as lines of text."""
    shown = ("dtype", "frozen_dtype", "fsdp", "remat", "microbatches", "steps")
    options = ", ".join(f"{name} {settings[name]}" for name in shown if name in settings)
    each = report.samples / report.devices
    lines = [
        f"{settings['what']} of {settings['config']} on {report.topology} ({report.devices} "
        f"devices): batch {report.samples} ({each:g} per device) of {settings['size']} px, "
        f"{options}",
        f"  memory per device{'' if report.refusal is None else ', which the compiler refused'}",
    ]
    sizes = {**report.arguments, **vars(report)}
    for name, label in _SIZES.items():
        if sizes.get(name) is not None:
            lines.append(f"    {label:36}{_gib(sizes[name])}")
    verdict = "fits" if report.fits else "NOT KNOWN" if report.crashed else "DOES NOT FIT"
    lines.append(
        f"    {'available':36}{_gib(report.usable)} of {report.hbm / GIB:.4g} GiB: {verdict}"
    )
    if report.refusal is not None:
        return "\n".join([*lines, f"    {report.refusal}"])
    if report.flops is not None and report.traffic is not None:
        lines.append(
            f"  work per device: {tera(report.flops)} executed, "
            f"{report.traffic / 1e9:.4g} GB read and written"
        )
    for kind, found in sorted(report.kernels.items(), key=lambda pair: -pair[1].bytes):
        lines.append(f"    {found.launches:6d} x {kind}: {found.bytes / 1e9:.4g} GB")
    if report.launches is not None:
        lines.append(f"    {report.launches:6d} launches by the host, a CUDA graph as one")
    for kind, total in sorted(report.collectives.items()):
        lines.append(
            f"    {total.count} x {kind}: {total.payload / 1e9:.4g} GB in all, "
            f"{total.sent / 1e9:.4g} GB sent"
        )
    if report.bound is not None:
        limits = ", ".join(f"{name} {1e3 * s:.4g} ms" for name, s in report.bounds.items())
        lines.append(
            f"  roofline (a bound from XLA's counts and the chip's peaks, no measurement): "
            f"{limits}; at most {report.samples / report.bound:.4g} samples/s"
        )
    times = ", ".join(f"{name} {s:g} s" for name, s in report.seconds.items())
    return "\n".join([*lines, f"  took {times} ({report.effort} effort)"])


def describe_search(tried: Mapping[int, Report]) -> str:
    """The outcome of a search as lines of text."""
    lines = ["  search of the largest batch"]
    for batch, report in sorted(tried.items()):
        verdict = "fits" if report.fits else "does not fit"
        if report.crashed:
            verdict = f"refused ({report.refusal})"
        each = batch / report.devices
        lines.append(f"    {batch} ({each:g} per device): {_gib(report.memory)}, {verdict}")
    return "\n".join([*lines, f"    largest that fits: {largest_fit(tried)}"])


def remedy(report: Report, settings: Mapping[str, Any]) -> str:
    """What to change so that a program fits, most promising first.

    Args:
      settings: of the job; fsdp and remat count where it trains.
    """
    ways, each = [], report.samples // report.devices
    if settings.get("remat", "full") != "full":
        ways.append("recompute more (--parallel.remat full)")
    if each > 1:
        ways.append(f"a smaller batch (--batch {report.devices * max(1, each // 2)})")
    fsdp = settings.get("fsdp")
    state = sum(report.arguments.get(name, 0) for name in ("parameters", "average", "optimizer"))
    if fsdp is not None and fsdp < report.devices and state > GIB / 4:
        ways.append(f"more fsdp (--parallel.fsdp {min(report.devices, 2 * fsdp)})")
    return " or ".join(ways) or "smaller images (--size) or a chip with more memory"
