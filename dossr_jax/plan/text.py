"""Reports in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dossr_jax.plan.chips import GIB
from dossr_jax.plan.report import Report
from dossr_jax.plan.search import Found

_ARGUMENTS = {
    "parameters": "parameters that learn",
    "average": "their average (EMA)",
    "optimizer": "optimiser state",
    "frozen": "frozen parameters",
    "batch": "batch",
    "settings": "settings",
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
        f"devices): batch {report.samples} ({each:g} a device) of {settings['size']} px, {options}",
        f"  memory of a device{'' if report.refusal is None else ', which the compiler refused'}",
    ]
    rows = [(_ARGUMENTS[name], size) for name, size in report.arguments.items()]
    rows += [
        ("activations and other temporaries", report.temporaries),
        ("outputs not in place", report.new_outputs),
        ("program", report.code),
        ("all at once", report.memory),
        ("(highest at any time, by XLA)", report.peak),
    ]
    lines += [f"    {label:36}{_gib(size)}" for label, size in rows if size is not None]
    verdict = "fits" if report.fits else "NOT KNOWN" if report.crashed else "DOES NOT FIT"
    lines.append(
        f"    {'to be had':36}{_gib(report.usable)} of {report.hbm / GIB:.4g} GiB: {verdict}"
    )
    if report.refusal is not None:
        return "\n".join([*lines, f"    {report.refusal}"])
    if report.flops is not None and report.traffic is not None:
        lines.append(
            f"  work of a device: {tera(report.flops)} executed, "
            f"{report.traffic / 1e9:.4g} GB read and written"
        )
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
    lines.append(f"  took {times} ({report.effort} effort)")
    return "\n".join(lines)


def describe_search(found: Found) -> str:
    """The outcome of a search as lines of text."""
    lines = ["  search of the largest batch"]
    for batch, report in sorted(found.tried.items()):
        verdict = "fits" if report.fits else "does not fit"
        if report.crashed:
            verdict = f"refused ({report.refusal})"
        lines.append(
            f"    {batch} ({batch / report.devices:g} a device): {_gib(report.memory)}, {verdict}"
        )
    return "\n".join([*lines, f"    largest that fits: {found.largest}"])
