"""Errors, tolerances and tables of the crosscheck: NumPy and strings only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dossr_jax.crosscheck.entries import HOST, TWIN, Entry

# Largest error in float64 against a float64 twin: rounding, through some hundred layers.
FLOAT64_BAR = 1e-9
# The published sampler truncates to 8 bits: a pixel next to a level's edge may fall on either side.
LEVEL_BAR = 1
EQUAL_PIXELS = 0.99
# Host arithmetic is float64; the buffers of a checkpoint are its results rounded to float32.
HOST_BAR = 2.0**-23

# Float32 results are held to this many times PyTorch's own float32 error: the largest distance of
# stored arrays from their float64 twins, over all entries of the kind and of those it depends on.
# One array alone says little (its error may be small by luck), nor can rounding be asked to be
# better than four units in the last place.
FACTOR = 4.0
FLOAT32_FLOOR = 4 * 2.0**-23
FLOAT32_CEILING = 1e-3


class Kind(NamedTuple):
    """What is known of the entries of one kind.

    Attributes:
      assumed: PyTorch's own error where a folder has no twins: three times the golden folder's.
      upstream: kinds that its errors come from, besides itself.
      float64: largest error in float64 against a float64 twin.
    """

    assumed: float
    upstream: tuple[str, ...] = ()
    float64: float = FLOAT64_BAR


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `error` and `tolerance` are max abs difference / max abs value, but for
    `reference` "levels", where they count 8-bit levels."""

    entry: str
    dtype: str
    reference: str
    error: float
    torch_error: float | None
    tolerance: float
    passed: bool
    note: str = ""


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max abs difference / max abs value; the difference itself where the reference is zero."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if reference.size == 0:
        return 0.0
    scale = np.abs(reference).max()
    return float(np.abs(ours - reference).max() / (scale if scale > 0 else 1.0))


def own_errors(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """PyTorch's float32 error by kind: the largest of its entries that have a float64 twin."""
    errors: dict[str, float] = {}
    for entry in entries:
        stored, twin = arrays[entry.stored], arrays.get(entry.stored + TWIN)
        if twin is not None and stored.dtype == np.float32:
            error = relative_error(stored, twin)
            errors[entry.kind] = max(error, errors.get(entry.kind, 0.0))
    return errors


class Tolerances(NamedTuple):
    """Largest errors of a folder's entries: its system's `kinds`, and :func:`own_errors`."""

    kinds: Mapping[str, Kind]
    own: Mapping[str, float]

    def float64(self, kind: str) -> float:
        """Against a float64 twin."""
        return self.kinds[kind].float64

    def float32(self, kind: str) -> float:
        """Of a result in float32, or against an array that is stored in float32 alone."""
        if kind == HOST:
            return HOST_BAR
        chain = [kind]
        for each in chain:
            chain += self.kinds[each].upstream
        known = [self.own[each] for each in chain if each in self.own]
        error = max(known) if known else self.kinds[kind].assumed
        return min(max(FACTOR * error, FLOAT32_FLOOR), FLOAT32_CEILING)


def compare(
    entry: Entry,
    dtype: str,
    ours: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    tolerances: Tolerances,
) -> Row:
    """Judge our result for a stored array and, where there is one, its float64 twin.

    Args:
      dtype: what ours was computed in, "float64", "float32" or "host".
      arrays: the stored ones.
    """
    name, stored, twin = entry.name, arrays[entry.stored], arrays.get(entry.stored + TWIN)
    ours = np.asarray(ours)
    if ours.shape != stored.shape:
        note = f"shape {ours.shape}, stored {stored.shape}"
        return Row(name, dtype, "shape", float("inf"), None, 0.0, False, note)
    if stored.dtype.kind in "US":
        same = bool((ours == stored).all())
        return Row(name, dtype, "exact", float(not same), None, 0.0, same)
    if stored.dtype == np.uint8:
        return _compare_levels(name, dtype, ours, stored)
    if stored.dtype.kind in "iu":
        error, differ = relative_error(ours, stored), int((ours != stored).sum())
        note = f"{differ} of {stored.size} differ" if differ else ""
        return Row(name, dtype, "exact", error, None, 0.0, not differ, note)
    tolerance = tolerances.float32(entry.kind)
    if twin is None:
        error = relative_error(ours, stored)
        if stored.dtype == np.float64 and dtype != "float32":
            return Row(name, dtype, "float64", error, None, FLOAT64_BAR, error <= FLOAT64_BAR)
        return Row(name, dtype, "fp32 only", error, None, tolerance, error <= tolerance)
    error, torch_error = relative_error(ours, twin), relative_error(stored, twin)
    if dtype == "float64":
        tolerance = tolerances.float64(entry.kind)
    return Row(name, dtype, "f64 twin", error, torch_error, tolerance, error <= tolerance)


def _compare_levels(entry: str, dtype: str, ours: np.ndarray, stored: np.ndarray) -> Row:
    gap = np.abs(ours.astype(int) - stored.astype(int))
    equal = float((gap == 0).mean())
    passed = bool(gap.max() <= LEVEL_BAR and equal >= EQUAL_PIXELS)
    note = f"{100 * equal:.3f} % of values equal"
    return Row(entry, dtype, "levels", float(gap.max()), None, float(LEVEL_BAR), passed, note)


def format_table(rows: Sequence[Row]) -> str:
    """Text table of the rows of one dtype."""
    if not rows:
        return ""
    cells = [("stage", "against", "error", "PyTorch fp32", "tolerance", "verdict")]
    for row in rows:
        own = "-" if row.torch_error is None else f"{row.torch_error:.2e}"
        verdict = ("ok" if row.passed else "FAIL") + (f"  {row.note}" if row.note else "")
        numbers = (f"{row.error:.2e}", own, f"{row.tolerance:.1e}")
        cells.append((row.entry, row.reference, *numbers, verdict))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = []
    for entry, reference, *numbers, verdict in cells:
        left = f"{entry:<{widths[0]}}  {reference:<{widths[1]}}"
        right = "  ".join(f"{n:>{w}}" for n, w in zip(numbers, widths[2:], strict=True))
        lines.append(f"{left}  {right}  {verdict}".rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def summarise(rows: Sequence[Row], dtype: str) -> str:
    """One line on the rows of one dtype: counts, the worst against its tolerance, failures."""
    passed = sum(row.passed for row in rows)
    text = f"{dtype}: {passed} of {len(rows)} entries agree"
    twins = [row for row in rows if row.reference == "f64 twin"]
    if twins:
        worst = max(twins, key=lambda row: row.error / row.tolerance)
        text += (
            f"; nearest to its tolerance {worst.entry} ({worst.error:.1e} of {worst.tolerance:.1e})"
        )
    failed = [row.entry for row in rows if not row.passed]
    return text + (f"; FAILED: {', '.join(failed)}" if failed else "")


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects; JSON has no infinity, so a misshapen result has no error."""
    return [
        dataclasses.asdict(row) | {"error": row.error if np.isfinite(row.error) else None}
        for row in rows
    ]
