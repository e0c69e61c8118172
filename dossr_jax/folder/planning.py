"""What a run will do with each input, and what can be known of it before the work."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import statistics
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Literal

from dossr_jax import files
from dossr_jax.config import UPSCALE
from dossr_jax.errors import UserError
from dossr_jax.files.formats import RAW_SUFFIXES
from dossr_jax.folder.finding import Input, suffix_of
from dossr_jax.folder.manifest import Manifest, Parameters, Record, content_of
from dossr_jax.folder.maps import MapFile
from dossr_jax.image_io import output_size
from dossr_jax.pipeline.blocks import SIDE
from dossr_jax.pipeline.memory import check_memory

# Bytes per byte of pixels: low for photos, so that what would fit is not refused.
_DENSITY = {"PNG": 0.4, "TIFF": 0.4, "BMP": 1.0, "JPEG": 0.15, "JPEG2000": 0.3}
_DENSITY_OF_OTHERS = 0.1
# Bytes per pixel that the networks make; the help of the command line says the same.
_MEMORY_PER_PIXEL = 2200 / UPSCALE**2


@dataclasses.dataclass(frozen=True)
class Task:
    """An input and what becomes of it.

    Attributes:
      target, stages: files relative to the output folder.
      action: "restore"; "unchanged" where the result is there; "kept" where the file that is there
        is not this command's to replace; "impossible".
      reason: of the last two.
      probe: None where the header was not read or cannot be.
      size: (width, height) of the result; None like `probe`.
      disk: rough bytes of the result; 0 where unknown.
      eta_map: says what of the input is kept; None where all of it is restored.
      factor: pixels that the networks make per pixel of the input, along each side.
    """

    input: Input
    target: Path
    stages: tuple[Path, ...]
    action: Literal["restore", "unchanged", "kept", "impossible"]
    reason: str = ""
    probe: files.Probe | None = None
    size: tuple[int, int] | None = None
    disk: float = 0.0
    eta_map: MapFile | None = None
    factor: int = UPSCALE

    @property
    def pixels(self) -> int:
        """Of the result; 0 where unknown."""
        return math.prod(self.size) if self.size else 0

    @property
    def memory(self) -> float:
        """Rough bytes while it is restored; 0 where unknown."""
        if self.probe is None:
            return 0.0
        made = self.factor**2 * self.probe.width * self.probe.height
        return _MEMORY_PER_PIXEL * min(made, SIDE * SIDE) + 6 * self.pixels * self.probe.bits / 8


def plan(
    inputs: Sequence[Input],
    names: Sequence[tuple[Path, tuple[Path, ...]]],
    manifest: Manifest,
    parameters: Parameters,
    *,
    scale: float,
    overwrite: bool,
    maps: Sequence[MapFile | UserError] | None = None,
    factor: int = UPSCALE,
) -> list[Task]:
    """The task of every input; writes nothing.

    `maps`: one per input, or why there is none, where there are to be any.

    Results of another input, or that someone changed, or that no manifest lists, are kept unless
    `overwrite` is set. `manifest` learns new times and places of inputs whose content is the same.
    `factor`: see Task.
    """
    ours = {relative_to(item.path, manifest.folder) for item in inputs}
    tasks = []
    given = [None] * len(inputs) if maps is None else maps
    for item, (target, stages), eta_map in zip(inputs, names, given, strict=True):
        task = Task(item, target, stages, "restore", factor=factor)
        if isinstance(eta_map, UserError):
            tasks.append(dataclasses.replace(task, action="impossible", reason=str(eta_map)))
            continue
        task = dataclasses.replace(task, eta_map=eta_map)
        record = manifest.records.get(target.as_posix())
        if record and _is_done(task, record, manifest, parameters):
            task = dataclasses.replace(task, action="unchanged")
        elif not overwrite and (reason := _reason_to_keep(task, record, manifest.folder, ours)):
            task = dataclasses.replace(task, action="kept", reason=reason)
        else:
            task = _foresee(task, scale)
        tasks.append(task)
    return tasks


def relative_to(path: Path, folder: Path) -> str:
    """The place of an input as its record has it."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: on another drive
        return path.absolute().as_posix()


def _is_done(task: Task, record: Record, manifest: Manifest, parameters: Parameters) -> bool:
    """Whether the result is there, complete, and of this input, map and parameters."""
    if (
        record.status != "restored"
        or record.parameters != dataclasses.asdict(parameters)
        or record.content is None
        or not {stage.as_posix() for stage in task.stages} <= set(record.stages)
        or not all((manifest.folder / file).exists() for file in task.stages)
        or not _is_untouched(record, manifest.folder)
    ):
        return False
    path, content = task.input.path, record.content
    with contextlib.suppress(OSError):
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (content.bytes, content.mtime_ns):
            content = content_of(path)
        place = relative_to(path, manifest.folder)
        mark = "" if task.eta_map is None else task.eta_map.mark()
        if content.sha256 == record.content.sha256 and record.eta_map == mark:
            known = dataclasses.replace(record, content=content, input=place)
            manifest.records[record.output] = known
            return True
    return False


def _is_untouched(record: Record, folder: Path) -> bool:
    path = folder / record.output
    return path.is_file() and path.stat().st_size == record.bytes


def _reason_to_keep(task: Task, record: Record | None, folder: Path, ours: Set[str]) -> str | None:
    """Why a file in the place of a result is not to be replaced, if there is one."""
    there = next((f for f in (task.target, *task.stages) if (folder / f).exists()), None)
    if there is None:
        return None
    known = record and there.as_posix() in (record.output, *record.stages)
    if not (record and known):
        return f"{there} exists, and no earlier run lists it"
    if record.status == "restored" and (folder / record.output).exists():
        if not _is_untouched(record, folder):
            return f"{there} was changed since it was restored"
        if record.input not in ours:
            return f"{there} is the result of {record.input}"
    return None


def _foresee(task: Task, scale: float) -> Task:
    """The task with sizes, or as impossible where the format cannot hold the result."""
    if suffix_of(task.input.path.name) in RAW_SUFFIXES:
        return task
    try:
        probe, bytes_ = files.probe(task.input.path), task.input.path.stat().st_size
    except (UserError, OSError):  # It is said when its turn comes.
        return task
    height, width = output_size(probe.height, probe.width, scale)
    kind = files.format_for(task.target)
    density = _DENSITY.get(kind, _DENSITY_OF_OTHERS) * len(probe.mode) * probe.bits / 8
    if kind == probe.format:
        density = min(density, bytes_ / (probe.width * probe.height))
    disk = width * height * density * (1 + len(task.stages))
    task = dataclasses.replace(task, probe=probe, size=(width, height), disk=disk)
    most = files.WRITABLE[kind].max_side
    reason = (
        f"its result of {width}x{height} is more than the {most} per side that {kind} holds; "
        "choose another format or reduce the scale"
    )
    if max(width, height) <= most:
        try:
            check_memory(probe.height, probe.width, scale, probe.bits // 8)
            return task
        except UserError as error:
            reason = str(error)
    return dataclasses.replace(task, action="impossible", reason=reason)


def check_room(tasks: Sequence[Task], folder: Path) -> None:
    """Check that the results fit on the disk, by a low estimate.

    Raises:
      UserError: they do not.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    needed = sum(task.disk for task in tasks if task.action == "restore")
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{folder}: the results need about {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are "
            "free; free some disk space, or choose --format jpg"
        )


def seconds_per_pixel(manifest: Manifest, parameters: Parameters) -> float | None:
    """How fast earlier runs were with this model, in the median of their results, if there are."""
    rates = [
        record.seconds / (record.width * record.height)
        for record in manifest.records.values()
        if record.status == "restored"
        and record.parameters.get("model_hash") == parameters.model_hash
        and record.width
    ]
    return statistics.median(rates) if rates else None
