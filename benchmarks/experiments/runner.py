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

EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
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
        sampling.systems,
        process.path,
    )
}


def settings_of(experiment: Experiment, common: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on, in JSON form: equal settings are not run again."""
    # Results of the model alone do not depend on what other systems there are.
    variants = [
        {k: v for k, v in dataclasses.asdict(variant).items() if k != "system" or v}
        for variant in experiment.variants
    ]
    said = {"title": experiment.title, "text": experiment.text, "shown": experiment.shown}
    if experiment.absent:
        said["absent"] = experiment.absent
    return json.loads(json.dumps({**common, **said, "published": PUBLISHED, "variants": variants}))


def kept(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a result with these settings and all its figures lie at `path` (JSON)."""
    try:
        stored = json.loads(path.read_text())
        figures = [name for name in (stored["figure"], *stored["crops"].values()) if name]
        there = all((path.parent / name).exists() for name in figures)
        return there and stored["settings"] == settings
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(path: Path, experiment: Experiment, bench: Bench, settings: dict[str, Any]) -> None:
    """Measure and draw; what was there goes first, the JSON that says that all is there last."""
    figure, crops = path.with_suffix(".png"), {}
    for old in (path, figure, *path.parent.glob(f"{path.stem}_*.png")):
        old.unlink(missing_ok=True)
    if experiment.extra is not None:
        rows, references = experiment.extra(bench, figure), []
    else:
        measured = [bench.measure(variant) for variant in experiment.variants]
        references = [m.as_row(bench.names) for m in bench.references]
        rows = [m.as_row(bench.names) for m in measured]
        if experiment.axis is not None:
            draw.curves(figure, bench, measured, axis=experiment.axis, timed=experiment.timed)
        crops = _draw_crops(path, experiment, bench, measured)
    content = {
        "settings": settings,
        "figure": figure.name if experiment.extra or experiment.axis else None,
        "crops": crops,
        "references": references,
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _draw_crops(
    path: Path, experiment: Experiment, bench: Bench, measured: list[Measured]
) -> dict[str, str]:
    """Sheets of crops beside a result: source -> file name."""
    by_label = {m.variant.label: m for m in measured}
    shown = [by_label[label] for label in experiment.shown]
    spread = path.stem == process.seeds.__name__
    crops = {}
    for source in bench.sources if shown else ():
        crops[source] = f"{path.stem}_{source}.png"
        draw.sheet(path.parent / crops[source], bench, source, shown, spread=spread)
    return crops
