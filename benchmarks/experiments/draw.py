"""Figures: curves of metrics, sheets of crops with their numbers, the way through a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dossr_jax.diffusion.schedule import Schedule
from dossr_jax.evaluate import METRICS
from experiments.bench import Bench, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "psnr_y": "PSNR-Y, dB",
    "ssim_y": "SSIM-Y",
    "niqe": "NIQE",
    "ssimulacra2": "SSIMULACRA 2",
}
SHORT = {"psnr_y": ("", 2, " dB"), "ssim_y": ("SSIM ", 3, ""), "niqe": ("NIQE ", 1, "")}
SHORT["ssimulacra2"] = ("S2 ", 0, "")
_DETAIL = 128  # side in pixels of the crops on a sheet
_COLUMNS = 6
_SECONDS = [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]


def short(scores: dict[str, float], names: Sequence[str]) -> str:
    """Numbers of an image in the space under its crop."""
    parts = [f"{SHORT[n][0]}{scores[n]:.{SHORT[n][1]}f}{SHORT[n][2]}" for n in names]
    return "\n".join(", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2))


def curves(
    path: Path,
    bench: Bench,
    measured: Sequence[Measured],
    *,
    axis: str,
    timed: bool,
) -> None:
    """A row a source, a panel a metric, a curve a series; references as dashed lines."""
    names, sources = bench.names, bench.sources
    figure = _new_figure(3.1 * len(names), 0.5 + 2.7 * len(sources))
    panels = figure.subplots(len(sources), len(names), squeeze=False)
    series: dict[str, list[Measured]] = {}
    for m in measured:
        series.setdefault(m.variant.series, []).append(m)
    for (row, column), panel in np.ndenumerate(panels):
        name, source = names[column], sources[row]
        for label, points in series.items():
            x = [m.seconds if timed else m.variant.x for m in points]
            y = [m.mean(name, source) for m in points]
            style = "*" if len(points) == 1 else "o-"
            size = 9 if len(points) == 1 else 3.5
            panel.plot(x, y, style, markersize=size, label=label)
        for m, color in zip(bench.references, ("0.2", "0.6"), strict=True):
            panel.axhline(m.mean(name, source), ls="--", lw=1, color=color, label=m.variant.label)
        if row == 0:
            arrow = "higher" if METRICS[name].better == "higher" else "lower"
            panel.set_title(f"{TITLES[name]} ({arrow} is better)")
        if column == 0:
            panel.set_ylabel(source)
        panel.set(xlabel=axis if row == len(sources) - 1 else "", xscale="log")
        ticks = sorted({m.variant.x for m in measured})
        if timed:
            low, high = panel.get_xlim()
            ticks = [t for t in _SECONDS if low <= t <= high]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def sheet(
    path: Path, bench: Bench, source: str, shown: Sequence[Measured], *, spread: bool = False
) -> None:
    """The middle of one image of a source by every variant, and the truth; numbers of it below.

    `spread` adds the deviation over the variants at every pixel.
    """
    index = bench.shown
    pictures = [("truth", _middle(bench.pairs_of(source)[index].hr), "")]
    pictures += [
        (
            m.variant.label,
            _middle(m.pictures[source][index]),
            short(m.scores[source][index], bench.names),
        )
        for m in (*bench.references, *shown)
    ]
    if spread:
        stack = np.stack([_middle(m.pictures[source][index]) for m in shown]).astype(np.float64)
        deviation = stack.std(axis=0).mean(axis=-1)
        title = f"8-bit levels, 0 to {deviation.max():.0f}\nmean {deviation.mean():.1f}"
        pictures.append(("deviation", deviation, title))
    rows = -(-len(pictures) // _COLUMNS)
    columns = -(-len(pictures) // rows)
    figure = _new_figure(1.55 * columns, 2.15 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.axis("off")
    for panel, (label, picture, numbers) in zip(figure.axes, pictures, strict=False):
        _picture(panel, picture, label, numbers)
    _save(figure, path)


def path(
    target: Path,
    schedule: Schedule,
    rows: Sequence[dict[str, Any]],
    pictures: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Curves of the process over t, then states and predictions (uint8 (n, h, w, 3)) by source."""
    figure = _new_figure(1.3 * len(rows), 2.7 + 3.3 * len(pictures))
    above, below = figure.subfigures(2, 1, height_ratios=(0.8, len(pictures)))
    panel = above.subplots()
    t = np.arange(len(schedule.eta))
    for name, color in (("eta", "C3"), ("alpha", "C0"), ("sigma", "C2")):
        panel.plot(t, getattr(schedule, name), color=color, label=name)
        panel.plot([r["x"] for r in rows], [r[name] for r in rows], "o", ms=4, color=color)
    panel.axvline(schedule.t1 - 1, ls="--", lw=1, color="0.4", label="start of sampling")
    panel.set(xlabel="t")
    panel.legend(frameon=False, loc="center right")
    panels = below.subplots(2 * len(pictures), len(rows))
    lines = [
        (source, drawn, key)
        for source, pair in pictures.items()
        for drawn, key in zip(pair, ("state", "mean"), strict=True)
    ]
    for line, (source, drawn, key) in enumerate(lines):
        for i, row in enumerate(rows):
            label = f"{row['label']}, eta {row['eta']:.2f}" if line == 0 else ""
            numbers = f"{row[key][source]['psnr_y']:.2f} dB"
            _picture(panels[line, i], _middle(drawn[i]), label, numbers)
        panels[line, 0].set_ylabel(f"{source}: {'x_t' if key == 'state' else 'x0 predicted'}")
    _save(figure, target)


def _picture(panel: Axes, picture: np.ndarray, label: str, numbers: str) -> None:
    panel.axis("on")
    panel.grid(False)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.imshow(picture, cmap=None if picture.ndim == 3 else "magma", interpolation="nearest")
    panel.set_title(label, fontsize=7)
    panel.set_xlabel(numbers, fontsize=6.5)


def _middle(image: np.ndarray) -> np.ndarray:
    corners = [max(0, (side - _DETAIL) // 2) for side in image.shape[:2]]
    return image[corners[0] : corners[0] + _DETAIL, corners[1] : corners[1] + _DETAIL]


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; matplotlib is imported here, as --help works without it."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.size": 8, "axes.grid": True, "grid.alpha": 0.3})
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    """Write a figure in 256 colours: a third of the bytes, by eye the same."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    image = Image.open(buffer).convert("RGB").quantize(256)
    image.save(path, optimize=True)
