"""What a request asks for, made picture by picture with the code of the command line.

Reading, restoring, naming and writing are those of dossr_jax.folder: with the same settings a file
from the page has the bytes of one from infer.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import color
from dossr_jax.folder.finding import Found, Input, Problems
from dossr_jax.folder.manifest import Manifest, Record
from dossr_jax.folder.naming import Naming, name_results
from dossr_jax.folder.planning import Task, plan
from dossr_jax.folder.run import Job, Run, Writing, make_parameters
from dossr_jax.pipeline import Stages
from dossr_jax.web.limits import Limits
from dossr_jax.web.models import Models

ZIP = "restored.zip"
# Sides, in pixels of the input, of the detail whose stages are shown: one tile of 512 pixels.
DETAIL = 128
_INPUTS = "inputs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for.

    Attributes:
      photos: uploaded files. model: one of the names in Models.
      fields: of Settings and SamplerConfig; those that the model does not read are left aside.
      seeds: one result per photo and seed.
      format: suffix of the results without its dot, or "same". writing: see Writing.
      stages: whether to keep the stages of a detail, too.
    """

    photos: tuple[Path, ...]
    model: str
    fields: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    format: str = "png"
    writing: Writing = Writing()
    stages: bool = False


@dataclasses.dataclass(frozen=True)
class Made:
    """A result: the file, that of its input, its seed, the record of the manifest, and stages."""

    path: Path
    source: Path
    seed: int
    record: Record
    stages: Stages | None


@dataclasses.dataclass
class Results:
    """What there is of a request so far.

    Attributes:
      folder: of all its files. made, failed: results, and a line for every picture without one.
      zip: all results in one file, where there are several, once the work has ended.
    """

    folder: Path
    made: list[Made] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    zip: Path | None = None


@dataclasses.dataclass(frozen=True)
class _Picture:
    task: Task
    job: Job
    seed: int


def prepare(
    request: Request, models: Models, limits: Limits, results: Results
) -> tuple[Generator[None, None, None], int]:
    """Check a request and plan it, its photos now also below the folder of the results.

    Returns:
      A generator that makes one picture per item, adds it to `results`, and ends with the ZIP; and
      the number of pictures.

    Raises:
      UserError: settings that the model cannot have, too many pictures, or no photo among the
        files that can be restored here. Others are noted as failed.
    """
    limits.check_count(len(request.photos), len(request.seeds))
    settings = {
        seed: models.settings(request.model, **request.fields, seed=seed) for seed in request.seeds
    }
    scale = settings[request.seeds[0]].scale
    taken = []
    for path in request.photos:
        try:
            limits.check_photo(path, scale)
            taken.append(path)
        except UserError as error:
            results.failed.append(str(error))
    if not taken:
        raise UserError("; ".join(results.failed))
    found = Found([Input(path, Path(path.name)) for path in _link(taken, results.folder)])
    template = "{stem}_seed{seed}" if len(request.seeds) > 1 else "{stem}"
    place, pictures = models.place(request.model), []
    for seed, of_seed in settings.items():
        naming = Naming(template, request.format, {"seed": str(seed)})
        problems = Problems()
        names = name_results(found, naming, results.folder, (), problems)
        if problems:
            raise problems[0]
        parameters = make_parameters(of_seed, models.args, place, models.hashes, request.writing)
        job = Job(results.folder, of_seed, parameters, request.writing)
        manifest = Manifest(results.folder)
        tasks = plan(found.inputs, names, manifest, parameters, scale=scale, overwrite=True)
        pictures += [_Picture(task, job, seed) for task in tasks]
    order = {item.path: place for place, item in enumerate(found.inputs)}
    pictures.sort(key=lambda picture: order[picture.task.input.path])  # variants come together
    return _make(request, models, pictures, results), len(pictures)


def _link(photos: Sequence[Path], folder: Path) -> list[Path]:
    """The photos in a folder of their own, so that their names and no others count."""
    linked: dict[str, Path] = {}
    for path in photos:
        # No name begins with a dot, and none is that of another photo.
        stem, suffix = path.stem.lstrip(".") or "photo", path.suffix
        name, number = stem + suffix, 1
        while name.casefold() in linked:
            number += 1
            name = f"{stem} ({number}){suffix}"
        place = linked[name.casefold()] = folder / _INPUTS / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, place)
    return list(linked.values())


def _make(
    request: Request, models: Models, pictures: Sequence[_Picture], results: Results
) -> Generator[None, None, None]:
    try:
        for picture in pictures:
            records: list[Record] = []
            upscaler = models.load(request.model)
            done = lambda _, record, records=records: records.append(record)  # noqa: E731
            Run(upscaler, picture.job, lambda record: None, done).run([picture.task])
            record = records[-1]
            source = picture.task.input.path
            if record.status == "failed":
                results.failed.append(_named(record.notes[0], results.folder))
            else:
                stages = _stages(upscaler, picture) if request.stages else None
                path = results.folder / picture.task.target
                results.made.append(Made(path, source, picture.seed, record, stages))
            yield
    finally:
        if len(results.made) > 1:
            results.zip = _pack(results)


def _stages(upscaler: Any, picture: _Picture) -> Stages:
    pixels, _ = color.to_working(files.read_photo(picture.task.input.path))
    return upscaler.stages(middle(pixels, DETAIL), picture.job.settings)


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image (h, w, c), at most `side` pixels high and wide."""
    height, width = min(side, pixels.shape[0]), min(side, pixels.shape[1])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _pack(results: Results) -> Path | None:
    path = results.folder / ZIP
    while any(made.path == path for made in results.made):
        path = path.with_name(f"_{path.name}")
    # Pictures are compressed already.
    with contextlib.suppress(OSError), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for made in results.made:
            archive.write(made.path, made.path.name)
        return path
    return None  # The single files are there.


def _named(line: str, folder: Path) -> str:
    """A line of an error without places of this machine."""
    return line.replace(f"{folder / _INPUTS}{os.sep}", "").replace(f"{folder}{os.sep}", "")


def remove(folder: Path) -> None:
    """Remove the files of a request."""
    shutil.rmtree(folder, ignore_errors=True)
