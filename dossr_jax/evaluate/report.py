"""Results as a table to read, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import secrets
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dossr_jax.errors import UserError

MEAN = "mean"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a way to restore takes.

    Attributes:
      parameters: numbers in its networks.
      evaluations: of the denoising network, for an image or each of its tiles.
      latency: seconds for one image, the median of several runs after one that compiled; None if
        not measured.
      timed: size of that image, LR, as "WxH".
      memory: peak in bytes; None where the system does not tell.
    """

    parameters: int
    evaluations: int
    latency: float | None
    timed: str
    memory: int | None


@dataclasses.dataclass(frozen=True)
class Result:
    """What one way to restore achieves: image -> metric -> value, and its cost if it was run."""

    name: str
    description: str
    scores: dict[str, dict[str, float]]
    cost: Cost | None

    def mean(self, metric: str) -> float | None:
        """Over the images that have the metric; None if none has."""
        values = [scores[metric] for scores in self.scores.values() if metric in scores]
        return statistics.fmean(values) if values else None


def image_table(result: Result, metrics: Sequence[str]) -> str:
    """One line per image, the means below."""
    rows = [
        [name, *(_number(scores.get(m)) for m in metrics)] for name, scores in result.scores.items()
    ]
    rows.append([MEAN, *(_number(result.mean(m)) for m in metrics)])
    return f"{result.name}: {result.description}\n" + _align([["image", *metrics], *rows])


def mean_table(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """A line for every way to restore: means, and costs where there are any."""
    costs = any(result.cost for result in results)
    head = ["", "images", *metrics]
    if costs:
        head += ["parameters", "evaluations", "latency s", "memory MB"]
    rows = []
    for result in results:
        row = [result.name, str(len(result.scores)), *(_number(result.mean(m)) for m in metrics)]
        if costs and result.cost:
            memory = result.cost.memory
            row += [
                f"{result.cost.parameters / 1e6:.2f} M",
                str(result.cost.evaluations),
                _number(result.cost.latency),
                "-" if memory is None else f"{memory / 1e6:.0f}",
            ]
        elif costs:
            row += ["-"] * 4
        rows.append(row)
    return _align([head, *rows])


def as_json(
    results: Sequence[Result], conventions: Mapping[str, str], about: Mapping[str, Any]
) -> str:
    """Everything, strict JSON: infinite values are the string "inf"."""
    content = {
        **about,
        "conventions": dict(conventions),
        "results": [
            {
                "name": r.name,
                "description": r.description,
                "mean": {m: _plain(r.mean(m)) for m in conventions},
                "images": {
                    name: {m: _plain(v) for m, v in scores.items()}
                    for name, scores in r.scores.items()
                },
                "cost": None if r.cost is None else dataclasses.asdict(r.cost),
            }
            for r in results
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_csv(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """One line per image and candidate; means are in lines of kind "mean"."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["kind", "result", "image", *metrics])
    for r in results:
        for name, scores in r.scores.items():
            writer.writerow(["image", r.name, name, *(scores.get(m, "") for m in metrics)])
        means = (r.mean(m) for m in metrics)
        writer.writerow([MEAN, r.name, "", *("" if m is None else m for m in means)])
    return file.getvalue()


def write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all; UserError for what the disk refuses."""
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write ({error.strerror or error}); choose a folder you can write to"
        ) from error


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
