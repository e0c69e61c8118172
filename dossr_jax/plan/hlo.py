"""What a compiled program says of itself: traffic between devices, and why it was refused."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) (?:ragged-)?({'|'.join(_KINDS)})(-start)?\(")
_WHILE = re.compile(r"\bwhile\(.*?\bbody=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?([^\s}]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_REQUIRED = re.compile(r"total memory required .*?\(([\d.]+)([KMGT]?)\) exceeds")
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Collective:
    """All exchanges of one kind that a device takes part in during one run of the program.

    `payload` is the size of the whole arrays exchanged, `sent` what one device sends for them in
    a ring.
    """

    count: int = 0
    payload: float = 0.0
    sent: float = 0.0


def collectives(text: str, devices: int) -> dict[str, Collective]:
    """Collectives by kind in the text of a compiled (partitioned) module.

    A loop's body counts as often as it runs, where the compiler knows. A group without a list
    of members is all `devices`.
    """
    bodies = dict(computations(text))
    times = _multiplicities(bodies)
    found: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            kind, group = match[2], _group_size(line, devices)
            size = _result_bytes(match[1], started=match[3] is not None and kind != "all-reduce")
            if kind == "reduce-scatter":
                size *= group
            share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}
            entry = found.setdefault(kind, Collective())
            entry.count += times[name]
            entry.payload += times[name] * size
            entry.sent += times[name] * size * share.get(kind, (group - 1) / group)
    return found


def memory_wanted(message: str) -> float | None:
    """Bytes that a refused program wants, as far as the compiler says."""
    match = _USED.search(message) or _REQUIRED.search(message)
    return None if match is None else float(match[1]) * _UNIT[match[2]]


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of every computation; the entry's name is ENTRY."""
    name, lines = None, []
    for line in text.splitlines():
        if name is None:
            match = _COMPUTATION.match(line)
            if match and not line.startswith("HloModule"):
                name, lines = "ENTRY" if match[1] else match[2], []
        elif line.startswith("}"):
            yield name, lines
            name = None
        else:
            lines.append(line)


def loop_body(text: str) -> tuple[str, int | None] | None:
    """The body of a loop in the attributes of its instruction, and how often it runs if known."""
    body, trips = _BODY.search(text), _TRIPS.search(text)
    return None if body is None else (body[1], int(trips[1]) if trips else None)


def type_bytes(text: str) -> float:
    """Bytes of an instruction's type, of a tuple all of its elements."""
    return float(sum(_bytes(kind, sides) for kind, sides in _ARRAY.findall(text)))


def _multiplicities(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often every computation runs."""
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            loop, trips = _WHILE.search(line), _TRIPS.search(line)
            for listed in _CALLED.findall(line):
                for callee in re.findall(r"[\w.\-]+", listed):
                    repeats = 1
                    if loop is not None and callee == loop[1] and trips is not None:
                        repeats = int(trips[1])
                    if callee in bodies:
                        calls[name].append((callee, repeats))
    times = dict.fromkeys(bodies, 0)

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for callee, trips in calls[name]:
            visit(callee, factor * trips)

    visit("ENTRY", 1)
    return times


def _result_bytes(text: str, *, started: bool) -> float:
    """Bytes of an instruction's type; of an asynchronous start (operands, results, ...) results."""
    if started and text.startswith("("):
        text = _elements(text)[1]
    return type_bytes(text)


def _elements(text: str) -> list[str]:
    """Elements of a tuple type, split at its own commas only."""
    parts, depth, start = [], 0, 1
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 1 and char == "," or depth == 0 and char == ")":
            parts.append(text[start:i])
            start = i + 1
    return parts


def _bytes(kind: str, sides: str) -> float:
    digits = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" or digits is None else int(digits[0])
    return math.prod(int(side) for side in sides.split(",") if side) * bits / 8


def _group_size(line: str, devices: int) -> int:
    if match := _COUNTED_GROUPS.search(line):
        return int(match[2])
    if (match := _LISTED_GROUPS.search(line)) and match[1]:
        return match[1].count(",") + 1
    return devices
