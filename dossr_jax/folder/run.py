"""Restores what was planned: files are read and written in threads, beside the device."""

from __future__ import annotations

import argparse
import dataclasses
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import Metadata, Photo
from dossr_jax.folder.manifest import Content, Parameters, Record, content_of
from dossr_jax.folder.model import name_of_model
from dossr_jax.folder.planning import Task, relative_to
from dossr_jax.pipeline import RestoredPhoto, Settings, restore_photos

if TYPE_CHECKING:
    from dossr_jax.pipeline import Upscaler
    from dossr_jax.pipeline.maps import EtaMap

# Fields of RestoredPhoto that --save-stages saves under their names.
STAGES = ("pre_restored", "decoded")
# Keyword of the metadata that a result was made by.
PARAMETERS = "Parameters"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Writing:
    """How results are written.

    Attributes:
      quality: of lossy formats; None for the format's default.
      strip: leave out the metadata of the input. record: put in the parameters.
    """

    quality: int | None = None
    strip: bool = False
    record: bool = True


def make_parameters(
    settings: Settings,
    args: argparse.Namespace,
    model: str,
    hashes: Mapping[str, str],
    writing: Writing,
) -> Parameters:
    """All that changes a result, without what is for memory and speed.

    Args:
      args: options of dossr_jax.options. model: which of theirs. hashes: of models by name.
    """
    values = dataclasses.asdict(settings)
    sampler = values.pop("sampler")
    del values["batch_size"]
    values = {
        **values,
        **(sampler if settings.diffuse else {}),
        "dtype": args.dtype,
        "preprocessor": hashes.get(args.preprocessor),
        "quality": writing.quality,
        "strip_metadata": writing.strip,
        "record": writing.record,
    }
    return Parameters(name_of_model(model), hashes[model], values)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is the same for all tasks of a run: with the model, all that a worker needs.

    Attributes:
      folder: of the results.
    """

    folder: Path
    settings: Settings
    parameters: Parameters
    writing: Writing

    def record(self, task: Task) -> Record:
        """That the task was started; its input is not read yet."""
        return Record(
            output=task.target.as_posix(),
            stages=tuple(stage.as_posix() for stage in task.stages),
            input=relative_to(task.input.path, self.folder),
            status="started",
            content=None,
            parameters=dataclasses.asdict(self.parameters),
        )

    def failed(self, task: Task, error: Exception) -> Record:
        """That the task failed, and why."""
        return _failed(self.record(task), task, error)

    def elsewhere(self) -> Job:
        """The same for a process with another working directory."""
        return dataclasses.replace(self, folder=self.folder.absolute())


@dataclasses.dataclass(frozen=True)
class _Read:
    """A task whose input was read: the name of its photo on the way through the device.

    eta_map, mark: of its map, if it has one.
    """

    task: Task
    content: Content
    notes: tuple[str, ...]
    eta_map: EtaMap | None
    mark: str


@dataclasses.dataclass
class Run:
    """Restores and writes what tasks say, whoever keeps the books; a failure stops no other.

    All results pass through one thread, which writes files and calls both functions.

    Attributes:
      started: gets the record of a task before its files are written.
      done: gets every task and its last record, "restored" or "failed".
    """

    upscaler: Upscaler
    job: Job
    started: Callable[[Record], None]
    done: Callable[[Task, Record], None]

    def __post_init__(self) -> None:
        self._last: Future[None] | None = None

    def run(self, tasks: Sequence[Task]) -> None:
        """Do the tasks that say "restore", and fail those that say "impossible".

        Raises:
          UserError: settings that the model cannot have. What `started` and `done` raise, too.
        """
        todo = self._grouped([task for task in tasks if task.action == "restore"])
        with (
            ThreadPoolExecutor(1, "write") as self._writer,
            ThreadPoolExecutor(1, "read") as reader,
        ):
            for task in tasks:
                if task.action == "impossible":
                    self._hand_over(task, None, UserError(f"{task.input.path}: {task.reason}"))
            for read, restored in restore_photos(
                self.upscaler,
                self._photos(ahead(reader, _read, todo)),
                self.job.settings,
                sizes=[(task.probe.height, task.probe.width) for task in todo if task.probe],
                stages=any(task.stages for task in todo),
                map_of=lambda read: read.eta_map,
            ):
                self._hand_over(read.task, read, restored)
            if self._last:
                self._last.result()
                self._last = None

    def _grouped(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks, so that those follow each other that can run together, as headers tell."""
        groups: dict[Hashable, list[Task]] = {}
        for task in tasks:
            kind = task.probe and self.upscaler.kind(task.probe.height, task.probe.width)
            groups.setdefault(kind, []).append(task)
        return [task for group in groups.values() for task in group]

    def _photos(
        self, readings: Iterable[tuple[Task, tuple[_Read, Photo] | UserError]]
    ) -> Iterator[tuple[_Read, Photo]]:
        for task, reading in readings:
            if isinstance(reading, UserError):
                self._hand_over(task, None, reading)
            else:
                yield reading

    def _hand_over(
        self, task: Task, read: _Read | None, outcome: RestoredPhoto | UserError
    ) -> None:
        """Leave a result to the other thread, as soon as that has done with the one before."""
        if self._last:
            self._last.result()
        self._last = self._writer.submit(self._finish, task, read, outcome)

    def _finish(self, task: Task, read: _Read | None, outcome: RestoredPhoto | UserError) -> None:
        content, mark = (read.content, read.mark) if read else (None, "")
        record = dataclasses.replace(self.job.record(task), content=content, eta_map=mark)
        try:
            if read is None or isinstance(outcome, UserError):
                raise UserError(str(outcome))
            self.started(record)
            record = self._write(task, read, outcome, record)
        except Exception as error:  # What no one foresaw in a file stops no other, either.
            record = _failed(record, task, error)
        self.done(task, record)

    def _write(self, task: Task, read: _Read, restored: RestoredPhoto, record: Record) -> Record:
        """Write the files of a result; returns its record."""
        folder, quality = self.job.folder, self.job.writing.quality
        for file, stage in zip(task.stages, STAGES, strict=False):
            photo = getattr(restored, stage)
            if photo is None:
                path = task.input.path
                raise UserError(f"{path}: too large for --save-stages; leave it out")
            files.write_photo(folder / file, self._marked(task, photo), quality=quality)
        path = folder / task.target
        lost = files.write_photo(path, self._marked(task, restored.photo), quality=quality)
        return dataclasses.replace(
            record,
            status="restored",
            width=restored.photo.width,
            height=restored.photo.height,
            bytes=path.stat().st_size,
            seconds=round(restored.seconds, 3),
            notes=(*read.notes, *lost, *restored.restored.notes),
        )

    def _marked(self, task: Task, photo: Photo) -> Photo:
        """With the metadata that are asked for."""
        metadata = photo.metadata
        if self.job.writing.strip:
            metadata = Metadata(dpi=metadata.dpi)
        if self.job.writing.record:
            others = (entry for entry in metadata.text if entry[0] != PARAMETERS)
            text = self.job.parameters.text()
            if task.eta_map is not None:
                text += f", {task.eta_map}"
            metadata = dataclasses.replace(metadata, text=(*others, (PARAMETERS, text)))
        return dataclasses.replace(photo, metadata=metadata)


def ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in order; while one is in use, the next is made."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > 1:
            first, future = waiting.popleft()
            yield first, future.result()
    for item, future in waiting:
        yield item, future.result()


def _read(task: Task) -> tuple[_Read, Photo] | UserError:
    path = task.input.path
    try:
        content = content_of(path)
        photo = files.read_photo(path)
        eta_map, mark = None, ""
        if task.eta_map is not None:
            eta_map, mark = task.eta_map.read((photo.height, photo.width)), task.eta_map.mark()
    except Exception as error:  # Decoders raise almost anything on damaged data.
        return UserError(_line(task, error))
    return _Read(task, content, photo.notes, eta_map, mark), photo


def _failed(record: Record, task: Task, error: Exception) -> Record:
    return dataclasses.replace(record, status="failed", notes=(_line(task, error),))


def _line(task: Task, error: Exception) -> str:
    """What prevented a result, naming its input."""
    path = task.input.path
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}; check name and permissions"
    if isinstance(error, UserError):
        named = str(path) in str(error) or task.target.name in str(error)
        return str(error) if named else f"{path}: {error}"
    return f"{path}: {type(error).__name__} ({error}); leave this file out"
