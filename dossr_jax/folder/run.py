"""Restores what was planned: files are read and written in threads, beside the device."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files import Metadata, Photo
from dossr_jax.folder.manifest import Content, Manifest, Parameters, Record, content_of
from dossr_jax.folder.planning import Task, relative_to
from dossr_jax.pipeline import RestoredPhoto, Settings, Upscaler, restore_photos

# Fields of RestoredPhoto that --save-stages saves under their names.
STAGES = ("pre_restored", "decoded")
# Keyword of the metadata that a result was made by.
PARAMETERS = "Parameters"
# Bytes of pixels that may wait for others of their size to run with.
_MOST_WAITING = 300 * 10**6
_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"

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


@dataclasses.dataclass
class Outcome:
    """What became of a run: seconds of every result, and the inputs that failed."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    failed: list[Path] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Read:
    """A task whose input was read: the name of its photo on the way through the device."""

    task: Task
    content: Content
    notes: tuple[str, ...]


@dataclasses.dataclass
class Run:
    """Restores and writes what `tasks` say, a line for each; a failure stops no other.

    All results pass through one thread that writes files, the manifest and the screen.
    """

    upscaler: Upscaler
    settings: Settings
    tasks: Sequence[Task]
    manifest: Manifest
    parameters: Parameters
    writing: Writing

    def __post_init__(self) -> None:
        self._outcome = Outcome()
        self._last: Future[None] | None = None
        self._count = sum(task.action in ("restore", "impossible") for task in self.tasks)

    def run(self) -> Outcome:
        """Run it, once.

        Raises:
          UserError: settings that the model cannot have, or the manifest cannot be written.
        """
        todo = [task for task in self.tasks if task.action == "restore"]
        folders = {(self.manifest.folder / task.target).parent for task in self.tasks}
        # The pixels of results, not files, take the time.
        total = sum(task.pixels for task in todo)
        with (
            self.manifest.writing({self.manifest.folder, *folders}),
            ThreadPoolExecutor(1, "write") as self._writer,
            ThreadPoolExecutor(1, "read") as reader,
            tqdm(total=total or None, bar_format=_BAR, dynamic_ncols=True) as self._bar,
        ):
            for task in self.tasks:
                if task.action == "impossible":
                    self._hand_over(task, None, UserError(f"{task.input.path}: {task.reason}"))
            for read, restored in self._restored(self._photos(ahead(reader, _read, todo))):
                self._hand_over(read.task, read, restored)
            if self._last:
                self._last.result()
        return self._outcome

    def _photos(
        self, readings: Iterable[tuple[Task, tuple[_Read, Photo] | UserError]]
    ) -> Iterator[tuple[_Read, Photo]]:
        for task, reading in readings:
            if isinstance(reading, UserError):
                self._hand_over(task, None, reading)
            else:
                yield reading

    def _restored(
        self, photos: Iterator[tuple[_Read, Photo]]
    ) -> Iterator[tuple[_Read, RestoredPhoto | UserError]]:
        """Restore them, however many sizes they have, with few of them in memory."""
        waiting: dict[Path, int] = {}
        more = True

        def some() -> Iterator[tuple[_Read, Photo]]:
            nonlocal more
            for read, photo in photos:
                waiting[read.task.target] = photo.pixels.nbytes
                yield read, photo
                if sum(waiting.values()) > _MOST_WAITING:
                    return  # so that what waits is run
            more = False

        while more:
            for read, restored in restore_photos(self.upscaler, some(), self.settings):
                del waiting[read.task.target]
                yield read, restored

    def _hand_over(
        self, task: Task, read: _Read | None, outcome: RestoredPhoto | UserError
    ) -> None:
        """Leave a result to the other thread, as soon as that has done with the one before."""
        if self._last:
            self._last.result()
        self._last = self._writer.submit(self._finish, task, read, outcome)

    def _finish(self, task: Task, read: _Read | None, outcome: RestoredPhoto | UserError) -> None:
        record = Record(
            output=task.target.as_posix(),
            stages=tuple(stage.as_posix() for stage in task.stages),
            input=relative_to(task.input.path, self.manifest.folder),
            status="started",
            content=read.content if read else None,
            parameters=dataclasses.asdict(self.parameters),
        )
        try:
            if read is None or isinstance(outcome, UserError):
                raise UserError(str(outcome))
            self.manifest.put(record)
            record = self._write(task, read, outcome, record)
        except Exception as error:  # What no one foresaw in a file stops no other, either.
            record = dataclasses.replace(record, status="failed", notes=(_line(task, error),))
        self.manifest.put(record)
        self._tell(task, record)

    def _write(self, task: Task, read: _Read, restored: RestoredPhoto, record: Record) -> Record:
        """Write the files of a result; returns its record."""
        folder, quality = self.manifest.folder, self.writing.quality
        for file, stage in zip(task.stages, STAGES, strict=False):
            photo = getattr(restored, stage)
            if photo is None:
                path = task.input.path
                raise UserError(f"{path}: too large for --save-stages; leave it out")
            files.write_photo(folder / file, self._marked(photo), quality=quality)
        path = folder / task.target
        lost = files.write_photo(path, self._marked(restored.photo), quality=quality)
        return dataclasses.replace(
            record,
            status="restored",
            width=restored.photo.width,
            height=restored.photo.height,
            bytes=path.stat().st_size,
            seconds=round(restored.seconds, 3),
            notes=(*read.notes, *lost),
        )

    def _marked(self, photo: Photo) -> Photo:
        """With the metadata that are asked for."""
        metadata = photo.metadata
        if self.writing.strip:
            metadata = Metadata(dpi=metadata.dpi)
        if self.writing.record:
            others = (entry for entry in metadata.text if entry[0] != PARAMETERS)
            text = self.parameters.text()
            metadata = dataclasses.replace(metadata, text=(*others, (PARAMETERS, text)))
        return dataclasses.replace(photo, metadata=metadata)

    def _tell(self, task: Task, record: Record) -> None:
        if record.status == "failed":
            self._outcome.failed.append(task.input.path)
            self._bar.write(f"error: {record.notes[0]}", file=sys.stderr)
        else:
            self._outcome.seconds.append(record.seconds)
            sides = f"{record.width}x{record.height}"
            path = self.manifest.folder / task.target
            self._bar.write(f"{path}  {sides}  {record.seconds:.1f} s")
            for note in record.notes:
                self._bar.write(f"note: {task.input.path}: {note}")
        done = len(self._outcome.seconds) + len(self._outcome.failed)
        self._bar.set_description_str(f"{done} of {self._count} ", refresh=False)
        if task.action == "restore":
            self._bar.update(task.pixels)


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
    except Exception as error:  # Decoders raise almost anything on damaged data.
        return UserError(_line(task, error))
    return _Read(task, content, photo.notes), photo


def _line(task: Task, error: Exception) -> str:
    """What prevented a result, naming its input."""
    path = task.input.path
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}; check name and permissions"
    if isinstance(error, UserError):
        named = str(path) in str(error) or task.target.name in str(error)
        return str(error) if named else f"{path}: {error}"
    return f"{path}: {type(error).__name__} ({error}); leave this file out"
