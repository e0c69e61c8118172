"""What is said before the work: what is left out, and with --dry-run what would be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dossr_jax import files
from dossr_jax.folder.planning import Task

_MOST_LINES = 5
_MOST_NAMES = 3


def left_out_lines(left_out: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """A line for each file that is left out, or for all of a reason that are many."""
    for reason, paths in left_out.items():
        if len(paths) > _MOST_LINES:
            names = ", ".join(path.name for path in paths[:_MOST_NAMES])
            yield f"left out: {len(paths)} files and folders such as {names} ({reason})"
        else:
            yield from (f"left out: {path} ({reason})" for path in paths)


def dry_run_lines(
    tasks: Sequence[Task], output: Path, seconds_per_pixel: float | None
) -> Iterator[str]:
    """A line for each input, then the totals; times are rough, and unknown before the first run."""
    rate = seconds_per_pixel

    def time(pixels: int) -> str:
        return "time unknown" if rate is None else f"about {rate * pixels:.0f} s"

    for task in tasks:
        target, path = output / task.target, task.input.path
        kind = files.format_for(task.target)
        if task.action in ("kept", "impossible"):
            yield f"{path}: {task.action} ({task.reason})"
        elif task.action == "unchanged":
            yield f"{path}: unchanged, restored as {target}"
        elif not (task.probe and task.size):
            yield f"{path}  size unknown -> {target}  {kind}"
        else:
            sides = f"{task.probe.width}x{task.probe.height}"
            width, height = task.size
            yield (
                f"{path}  {sides} -> {target}  {width}x{height} {kind}, {time(task.pixels)}, "
                f"{task.disk / 1e6:.2g} MB"
            )
    todo = [task for task in tasks if task.action == "restore"]
    total = sum(task.pixels for task in todo)
    memory = max((task.memory for task in todo), default=0)
    yield (
        f"{len(todo)} of {len(tasks)} to restore: {total / 1e6:.2f} megapixels, {time(total)}, "
        f"{sum(task.disk for task in todo) / 1e6:.2g} MB on disk, at most {memory / 1e9:.2g} GB of "
        "memory for a photo, besides the model (all rough)"
    )
