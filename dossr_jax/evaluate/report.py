"""Results as a table to read, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cost:
    """What it costs to restore in some way.

    Attributes:
      parameters: parameter count of the networks that run.
      evaluations: of the denoising network, per image or per tile of it.
      latency: median seconds for one image, without compilation; None if not measured.
      timed: size of that LR image, as "WxH".
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

    @property
    def means(self) -> dict[str, float]:
        """Mean of every metric over the images that have it."""
        names = {metric for scores in self.scores.values() for metric in scores}
        return {
            name: statistics.fmean(s[name] for s in self.scores.values() if name in s)
            for name in names
        }


def image_table(result: Result, metrics: Sequence[str]) -> str:
    """One line per image, the means below."""
    lines = [*result.scores.items(), ("mean", result.means)]
    rows = [[name, *(number(scores.get(m)) for m in metrics)] for name, scores in lines]
    return f"{result.name}: {result.description}\n" + _align([["image", *metrics], *rows])


def mean_table(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """A line for every way to restore: means, and costs where there are any."""
    return _align(mean_rows(results, metrics))


def mean_rows(results: Sequence[Result], metrics: Sequence[str]) -> list[list[str]]:
    """The cells of :func:`mean_table`, the head first."""
    costs = any(result.cost for result in results)
    head = ["", "images", *metrics]
    if costs:
        head += ["parameters", "evaluations", "latency s", "memory MB"]
    rows = []
    for result in results:
        means = result.means
        row = [result.name, str(len(result.scores)), *(number(means.get(m)) for m in metrics)]
        if costs and result.cost:
            memory = result.cost.memory
            row += [
                f"{result.cost.parameters / 1e6:.2f} M",
                str(result.cost.evaluations),
                number(result.cost.latency),
                "-" if memory is None else f"{memory / 1e6:.0f}",
            ]
        elif costs:
            row += ["-"] * 4
        rows.append(row)
    return [head, *rows]


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
                "mean": {m: _plain(r.means.get(m)) for m in conventions},
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
    writer = csv.DictWriter(file, ["kind", "result", "image", *metrics], lineterminator="\n")
    writer.writeheader()
    for r in results:
        for name, scores in r.scores.items():
            writer.writerow({"kind": "image", "result": r.name, "image": name, **scores})
        writer.writerow({"kind": "mean", "result": r.name, **r.means})
    return file.getvalue()


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value


def number(value: float | None) -> str:
    """A value as tables show it."""
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
