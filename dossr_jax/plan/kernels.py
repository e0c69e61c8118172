"""Kernels of a program that was compiled for a GPU: how many it launches, and what they move.

XLA gives no cost analysis for a GPU that is not there; the compiled text tells. Every kernel reads
its operands whole and writes its result once: a fusion that needs a part of an operand moves less.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from dossr_jax.plan import hlo

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"\b(?:condition|true_computation|false_computation|to_apply)=%?([\w.\-]+)"
    r"|\bbranch_computations=\{([^}]*)\}"
)
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SCRATCH = re.compile(r"u8\[\d*\]")  # of a library's kernel, beside its result
# What launches nothing, or what another instruction launches.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "opt-barrier", "copy-done", "async-done", "async-update"),
}
_COPIES = {"copy", "copy-start", "transpose", "concatenate", "slice", "pad", "reverse", "reshape"}
# Seconds from one launch to the next, at best and without CUDA graphs.
LAUNCH_SECONDS = 2e-6


@dataclasses.dataclass
class Kernels:
    """Kernels of one kind: how often they are launched in a run, and the bytes that they move."""

    launches: int = 0
    bytes: float = 0.0


def count_kernels(text: str, *, padded: int, steps: int) -> dict[str, Kernels]:
    """Kernels by kind in the text of a compiled module.

    Args:
      padded: rows of the solver's table, over which its loop runs.
      steps: how many of them are active; the others launch nothing.
    """
    bodies = dict(hlo.computations(text))
    found: dict[str, Kernels] = {}

    def visit(name: str, times: int) -> None:
        types: dict[str, str] = {}
        for line in bodies[name]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, kind, opcode, operands, rest = match.groups()
            types[result] = kind
            for callee, repeats in _callees(opcode, rest):
                if callee in bodies:
                    visit(callee, times * (steps if repeats == padded else repeats))
            if opcode in _FREE:
                continue
            entry = found.setdefault(_kind(opcode, rest, bodies), Kernels())
            moved = [types.get(operand, "") for operand in _NAME.findall(operands)]
            entry.launches += times
            entry.bytes += times * sum(map(_bytes, (kind, *moved)))

    visit("ENTRY", 1)
    return found


def _callees(opcode: str, rest: str) -> list[tuple[str, int]]:
    """Computations that an instruction runs kernel by kernel, and how often."""
    if opcode not in ("while", "conditional", "call"):
        return []
    found = []
    for one, several in _BRANCHES.findall(rest):
        found += [(name, 1) for name in re.findall(r"[\w.\-]+", one or several)]
    if loop := hlo.loop_body(rest):
        found.append(loop)
    return found


def _bytes(kind: str) -> float:
    return hlo.type_bytes(_SCRATCH.sub("", kind) if kind.startswith("(") else kind)


def _kind(opcode: str, rest: str, bodies: Mapping[str, Sequence[str]]) -> str:
    if opcode == "custom-call":
        target = _TARGET.search(rest)
        name = "" if target is None else target[1]
        for part, kind in (("conv", "convolution"), ("fmha", "attention"), ("blas", "product")):
            if part in name:
                return kind
        return "other"
    called = _CALLS.search(rest)
    inside = bodies.get(called[1], ()) if called else ()
    opcodes = {m[3] for line in inside if (m := _INSTRUCTION.match(line))} or {opcode}
    for part, kind in (("convolution", "convolution"), ("dot", "product"), ("reduce", "reduction")):
        if part in opcodes:
            return kind
    return "copy" if opcodes - _FREE <= _COPIES else "elementwise"
