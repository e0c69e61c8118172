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
_SCRATCH = re.compile(r"[su]8\[\d*\]")  # of a library's kernel, beside its result
# What launches nothing, or what another instruction launches.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "opt-barrier", "copy-done", "async-done", "async-update"),
}
_COPIES = {"copy", "copy-start", "transpose", "concatenate", "slice", "pad", "reverse", "reshape"}
_WHILE = re.compile(r" while\(")
# A line of XLA's list of what it runs: indentation tells what is inside a graph or a loop.
_THUNK = re.compile(r"^(\s*)\d+: (k\w+)")
_GRAPH, _LOOP = "kCommandBuffer", "kWhile"
# Seconds from one launch to the next, at best.
LAUNCH_SECONDS = 2e-6


@dataclasses.dataclass
class Kernels:
    """Kernels of one kind: how often they are launched in a run, and the bytes that they move."""

    launches: int = 0
    bytes: float = 0.0


def count_kernels(text: str, *, steps: int) -> dict[str, Kernels]:
    """Kernels by kind in the text of a compiled module.

    Args:
      steps: how often the solver's loop runs, the only one whose length the compiler does not know.
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
                    visit(callee, times * (repeats or steps))
            if opcode in _FREE:
                continue
            called = _CALLS.search(rest)
            inside = bodies.get(called[1], []) if called else [line]
            entry = found.setdefault(_kind(opcode, rest, inside), Kernels())
            moved = [types.get(operand, "") for operand in _NAME.findall(operands)]
            entry.launches += times
            entry.bytes += times * _traffic(kind, moved, inside, types)

    visit("ENTRY", 1)
    return found


def count_launches(thunks: str, text: str, *, steps: int) -> int:
    """What the host launches in a run: CUDA graphs whole, and kernels and copies outside of them.

    Args:
      thunks: XLA's dump of what it runs. text, steps: see :func:`count_kernels`.
    """
    loops = iter([loop[1] or steps for loop in _loops(text)])
    count, around = 0, [(-1, 1)]  # (indentation, how often what is inside is launched)
    for match in filter(None, map(_THUNK.match, thunks.splitlines())):
        depth, kind = len(match[1]), match[2]
        while around[-1][0] >= depth:
            around.pop()
        times = around[-1][1]
        if kind == _LOOP:
            around.append((depth, times * next(loops)))
            continue
        count += times
        if kind == _GRAPH:
            around.append((depth, 0))
    return count


def _loops(text: str) -> list[tuple[str, int | None]]:
    """Loops of a program in the order in which they run, none inside another."""
    entry = dict(hlo.computations(text))["ENTRY"]
    return [loop for line in entry if _WHILE.search(line) and (loop := hlo.loop_body(line))]


def _callees(opcode: str, rest: str) -> list[tuple[str, int | None]]:
    """Computations that an instruction runs kernel by kernel, and how often if that is known."""
    if opcode not in ("while", "conditional", "call"):
        return []
    found: list[tuple[str, int | None]] = []
    for one, several in _BRANCHES.findall(rest):
        found += [(name, 1) for name in re.findall(r"[\w.\-]+", one or several)]
    if loop := hlo.loop_body(rest):
        found.append(loop)
    return found


def _traffic(
    result: str, operands: Sequence[str], inside: Sequence[str], types: Mapping[str, str]
) -> float:
    """Bytes that a kernel moves; a part that it puts into an array in place, not the array."""
    types, updated = dict(types), None
    for match in filter(None, map(_INSTRUCTION.match, inside)):
        types[match[1]] = match[2]
        updated = _NAME.findall(match[4])[1] if match[3] == "dynamic-update-slice" else None
    if updated is not None and result in operands:
        others = list(operands)
        others.remove(result)
        result, operands = types.get(updated, result), others
    return sum(map(_bytes, (result, *operands)))


def _bytes(kind: str) -> float:
    return hlo.type_bytes(_SCRATCH.sub("", kind) if kind.startswith("(") else kind)


def _kind(opcode: str, rest: str, inside: Sequence[str]) -> str:
    if opcode == "custom-call":
        target = _TARGET.search(rest)
        name = "" if target is None else target[1]
        for part, kind in (("conv", "convolution"), ("fmha", "attention"), ("blas", "product")):
            if part in name:
                return kind
        return "other"
    opcodes = {m[3] for line in inside if (m := _INSTRUCTION.match(line))}
    for part, kind in (("convolution", "convolution"), ("dot", "product"), ("reduce", "reduction")):
        if part in opcodes:
            return kind
    return "copy" if opcodes - _FREE <= _COPIES else "elementwise"
