"""Runs experiments that are not there yet: numbers as JSON, figures beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import draw, process, sampling
from experiments.bench import PUBLISHED, Bench, Measured
from experiments.sampling import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    make.__name__: make
    for make in (
        sampling.steps,
        sampling.order,
        sampling.shift,
        sampling.start,
        process.seeds,
        sampling.solver,
        sampling.color_fix,
        sampling.latency,
        process.path,
    )
}


def settings_of(experiment: Experiment, common: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on, as JSON has it: equal settings need no second run."""
    variants = [dataclasses.asdict(v) for v in experiment.variants]
    said = {"title": experiment.title, "text": experiment.text, "shown": experiment.shown}
    return json.loads(json.dumps({**common, **said, "published": PUBLISHED, "variants": variants}))


def kept(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a result with these settings and all its figures lie at `path` (JSON)."""
    try:
        stored = json.loads(path.read_text())
        figures = [path.parent / name for name in stored["figures"]]
        return stored["settings"] == settings and all(f.exists() for f in figures)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(
    path: Path, experiment: Experiment, bench: Bench, settings: dict[str, Any], facts: dict
) -> None:
    """Measure and draw; the JSON, which says that all is there, is written last."""
    figures, name = [], path.stem
    if experiment.extra is not None:
        figures.append(f"{name}.png")
        rows, references = experiment.extra(bench, path.parent / figures[-1]), []
    else:
        measured = [bench.measure(variant) for variant in experiment.variants]
        references = [m.as_row(bench.names) for m in bench.references]
        rows = [m.as_row(bench.names) for m in measured]
        figures += _figures(path, experiment, bench, measured)
    content = {
        "settings": settings,
        **facts,
        "metrics": bench.names,
        "left_out": bench.left_out,
        "figures": figures,
        "references": references,
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _figures(
    path: Path, experiment: Experiment, bench: Bench, measured: list[Measured]
) -> list[str]:
    figures = []
    if experiment.axis is not None:
        figures.append(f"{path.stem}.png")
        draw.curves(
            path.parent / figures[-1],
            measured,
            bench.references,
            bench.names,
            axis=experiment.axis,
            timed=experiment.timed,
        )
    if experiment.shown:
        by_label = {m.variant.label: m for m in measured}
        figures.append(f"{path.stem}_crops.png")
        shown = [by_label[label] for label in experiment.shown]
        spread = path.stem == process.seeds.__name__
        draw.sheet(path.parent / figures[-1], bench, shown, spread=spread)
    return figures
