"""Errors, tolerances and tables of the crosscheck: NumPy and strings only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TWIN = "__f64"

# Largest error in float64 against a float64 twin: rounding, through some hundred layers.
FLOAT64_BAR = 1e-9
# The same where the twin's arithmetic is float64 but its schedule is not (see KEEPS_BUFFERS).
BUFFER_BAR = 1e-6
# A PyTorch result can lie arbitrarily close to its twin by luck; rounding the result to float32
# and the operations just before it cannot be asked to be better than four units in the last place.
FLOAT32_FLOOR = 4 * 2.0**-23
# The published sampler truncates to 8 bits: a pixel next to a level's edge may fall on either side.
LEVEL_BAR = 1
EQUAL_PIXELS = 0.99

# Largest error in float32 by kind of stage, where PyTorch's own is within it.
FLOAT32_BARS = {
    # t times frequency reaches 1000 rad, of which float32 resolves 3e-5.
    "embedding": 1e-4,
    "network": 5e-6,
    "vae": 5e-5,
    "trajectory": 3e-5,
    "training": 1e-5,
    # Host arithmetic is float64; the buffers of a checkpoint are its results rounded to float32.
    "host": 2.0**-23,
}
# The twin of these kinds is PyTorch in float64 with its registered schedule buffers left as they
# are stored, rounded to float32, where ours are float64 throughout.
KEEPS_BUFFERS = {"training"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `error` and `tolerance` are max abs difference / max abs value, but for
    `reference` "levels", where they count 8-bit levels."""

    stage: str
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


def compare(
    stage: str, kind: str, dtype: str, ours: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> Row:
    """Judge our result for the stored array `stage` and, where there is one, its float64 twin.

    Args:
      kind: key of FLOAT32_BARS. dtype: what ours was computed in, "float64", "float32" or "host".
      arrays: the stored ones.
    """
    stored, twin = arrays[stage], arrays.get(stage + TWIN)
    ours = np.asarray(ours)
    if ours.shape != stored.shape:
        note = f"shape {ours.shape}, stored {stored.shape}"
        return Row(stage, dtype, "shape", float("inf"), None, 0.0, False, note)
    if stored.dtype.kind in "US":
        same = bool((ours == stored).all())
        return Row(stage, dtype, "exact", float(not same), None, 0.0, same)
    if stored.dtype == np.uint8:
        return _compare_levels(stage, dtype, ours, stored)
    if stored.dtype.kind in "iu":
        error = relative_error(ours, stored)
        return Row(stage, dtype, "exact", error, None, 0.0, error == 0)
    bar = FLOAT32_BARS[kind]
    if twin is None:
        error = relative_error(ours, stored)
        if stored.dtype == np.float64 and dtype != "float32":
            return Row(stage, dtype, "float64", error, None, FLOAT64_BAR, error <= FLOAT64_BAR)
        return Row(stage, dtype, "fp32 only", error, None, bar, error <= bar)
    error, torch_error = relative_error(ours, twin), relative_error(stored, twin)
    if dtype == "float64":
        tolerance = BUFFER_BAR if kind in KEEPS_BUFFERS else FLOAT64_BAR
    else:
        tolerance = max(2 * torch_error, FLOAT32_FLOOR)
        if torch_error <= bar:  # a bar that PyTorch itself misses binds nobody
            tolerance = min(bar, tolerance)
    return Row(stage, dtype, "f64 twin", error, torch_error, tolerance, error <= tolerance)


def _compare_levels(stage: str, dtype: str, ours: np.ndarray, stored: np.ndarray) -> Row:
    gap = np.abs(ours.astype(int) - stored.astype(int))
    equal = float((gap == 0).mean())
    passed = bool(gap.max() <= LEVEL_BAR and equal >= EQUAL_PIXELS)
    note = f"{100 * equal:.3f} % of values equal"
    return Row(stage, dtype, "levels", float(gap.max()), None, float(LEVEL_BAR), passed, note)


def format_table(rows: Sequence[Row]) -> str:
    """Text table of the rows of one dtype."""
    if not rows:
        return ""
    cells = [("stage", "against", "error", "PyTorch fp32", "tolerance", "verdict")]
    for row in rows:
        own = "-" if row.torch_error is None else f"{row.torch_error:.2e}"
        verdict = ("ok" if row.passed else "FAIL") + (f"  {row.note}" if row.note else "")
        numbers = (f"{row.error:.2e}", own, f"{row.tolerance:.1e}")
        cells.append((row.stage, row.reference, *numbers, verdict))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = []
    for stage, reference, *numbers, verdict in cells:
        left = f"{stage:<{widths[0]}}  {reference:<{widths[1]}}"
        right = "  ".join(f"{n:>{w}}" for n, w in zip(numbers, widths[2:], strict=True))
        lines.append(f"{left}  {right}  {verdict}".rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def summarise(rows: Sequence[Row], dtype: str) -> str:
    """One line on the rows of one dtype: counts, the worst against its tolerance, failures."""
    passed = sum(row.passed for row in rows)
    text = f"{dtype}: {passed} of {len(rows)} stages agree"
    twins = [row for row in rows if row.reference == "f64 twin"]
    if twins:
        worst = max(twins, key=lambda row: row.error / row.tolerance)
        text += (
            f"; nearest to its tolerance {worst.stage} ({worst.error:.1e} of {worst.tolerance:.1e})"
        )
    failed = [row.stage for row in rows if not row.passed]
    return text + (f"; FAILED: {', '.join(failed)}" if failed else "")


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects; JSON has no infinity, so a misshapen result has no error."""
    return [
        dataclasses.asdict(row) | {"error": row.error if np.isfinite(row.error) else None}
        for row in rows
    ]
