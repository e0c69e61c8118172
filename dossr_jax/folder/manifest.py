"""`dossr.jsonl` in the output folder: what every result was made from, and how.

A line of JSON is added before a result is written, with the status "started", and another when it
has its name or has failed. So whatever moment a run is killed at, the next one knows which files
are results, and which of them are complete.

Where several processes share a run, the first one writes this file and each of the others a part of
its own beside it, `dossr.1.jsonl` and so on. The first one puts their records into the manifest at
the end; the next run does so if that never came.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import dossr_jax
from dossr_jax import files
from dossr_jax.errors import UserError

NAME = "dossr.jsonl"
_PART = re.compile(r"dossr\.\d+\.jsonl")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")

Status = Literal["started", "restored", "failed"]


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds: bytes, time of the last change in ns, SHA-256."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Record:
    """A line: an input and its result.

    Attributes:
      output, stages: the result and its further files, relative to the output folder.
      input: relative to the output folder, too, or absolute on another drive.
      content: of the input; None if it could not be read.
      parameters: the model, its hash and the settings, see :class:`Parameters`.
      width, height, bytes: of the result. seconds: it took.
      notes: what was assumed or lost, or the error.
      eta_map: the mark of the map that says what is kept, if there is one.
    """

    output: str
    input: str
    status: Status
    content: Content | None
    parameters: Mapping[str, Any]
    stages: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    eta_map: str = ""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What makes a result, besides its input.

    Attributes:
      model: its name. model_hash: see :func:`hash_of_model`.
      settings: of the picture, the sampler and the file.
    """

    model: str
    model_hash: str
    settings: Mapping[str, Any]

    def text(self) -> str:
        """For people, on one line."""
        values = {"model": f"{self.model} ({self.model_hash[:12]})", **self.settings}
        told = (f"{name} {value}" for name, value in values.items() if value is not None)
        return f"dossr-jax {dossr_jax.__version__}: {', '.join(told)}"


def content_of(path: Path) -> Content:
    """Size, time and hash of a file; raises OSError."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Content(status.st_size, status.st_mtime_ns, digest)


def is_manifest(name: str) -> bool:
    """Whether a file is a manifest, or a part of one, by its name."""
    return name == NAME or _PART.fullmatch(name) is not None


def read_records(folder: Path) -> dict[str, Record]:
    """The last record of every result in a folder; none where there is no manifest.

    Raises:
      UserError: the manifest cannot be read.
    """
    return _parse(b"\n".join(map(_read, [folder / NAME, *_parts(folder)])))


class _Lines:
    """A file that records are added to while it is open."""

    def __init__(self, path: Path):
        self._path = path
        self._file: BinaryIO | None = None

    @contextlib.contextmanager
    def _open(self, mode: Literal["ab", "wb"]) -> Iterator[BinaryIO]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self._path, mode, buffering=0)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        with file:
            self._file = file
            yield file

    def _write(self, line: bytes) -> None:
        assert self._file is not None, "the file is not open"
        try:
            self._file.write(line)
        except OSError as error:
            raise _cannot_write(self._path, error) from error


class Part(_Lines):
    """What one of the other processes of a run records, until the first one has taken it over.

    Attributes:
      records: in their order.
    """

    def __init__(self, folder: Path, process: int):
        super().__init__(folder / f"dossr.{process}.jsonl")
        self.records: list[Record] = []

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Open it, empty. Raises UserError if it cannot be written."""
        with self._open("wb"):
            yield

    def put(self, record: Record) -> None:
        """Add a record; it is in the file when this returns. Raises UserError if it cannot be."""
        self.records.append(record)
        self._write(_line(record))

    def remove(self) -> None:
        """Remove it, for the manifest has its records."""
        with contextlib.suppress(OSError):  # The next run does it.
            self._path.unlink()


class Manifest(_Lines):
    """The manifest of an output folder, by :attr:`records`; written between enter and exit."""

    def __init__(self, folder: Path):
        super().__init__(folder / NAME)
        self.folder = folder
        self._content = _read(self._path)
        self.records = read_records(folder)
        self._made: set[str] = set()

    @contextlib.contextmanager
    def writing(self, folders: Iterable[Path]) -> Iterator[None]:
        """Open it for new records and rewrite it sorted at the end, unless an error ends the run.

        Temporary files that killed runs left in `folders` are removed.

        Raises:
          UserError: it cannot be written, or another run writes it.
        """
        with self._open("ab") as file:
            self._lock(file)
            if self._content and not self._content.endswith(b"\n"):
                self._write(b"\n")  # a torn line of a killed run
            self._take_over_parts()
            for folder in folders:
                _remove_temporary(folder)
            yield
        kept = [
            record
            for output, record in sorted(self.records.items())
            # Network drives may show a result of another machine late.
            if record.status == "failed"
            or output in self._made
            or (self.folder / record.output).exists()
        ]
        content = b"".join(map(_line, kept))
        if content != _read(self._path):
            files.write_file(self._path, content)

    def put(self, record: Record) -> None:
        """Add a record; it is in the file when this returns. Raises UserError if it cannot be."""
        self.records[record.output] = record
        if record.status == "restored":
            self._made.add(record.output)
        self._write(_line(record))

    def _take_over_parts(self) -> None:
        for part in _parts(self.folder):
            self._write(_read(part) + b"\n")
            try:
                part.unlink()
            except OSError as error:  # It would count as newer than what follows.
                raise _cannot_write(part, error) from error

    def _lock(self, file: BinaryIO) -> None:
        busy = UserError(
            f"{self.folder}: another run writes into this folder; wait for its end, or choose "
            "another output folder"
        )
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except (ImportError, OSError):  # Windows, and drives without locks, go without.
            pass
        if _read(self._path) != self._content:
            raise busy


def _parts(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(filter(_PART.fullmatch, os.listdir(folder)))]
    except OSError:  # no such folder, or it is said where the manifest is read
        return []


def _remove_temporary(folder: Path) -> None:
    with contextlib.suppress(OSError):  # They are in nobody's way.
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            (folder / name).unlink()


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{path}: cannot write ({reason}); free some disk space or check permissions")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check its permissions") from error


def _line(record: Record) -> bytes:
    return json.dumps(dataclasses.asdict(record), sort_keys=True).encode() + b"\n"


def _parse(content: bytes) -> dict[str, Record]:
    """Records by output, the last of each; lines that are torn or not ours are passed over."""
    records = {}
    for line in content.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            fields = json.loads(line)
            if fields["content"] is not None:
                fields["content"] = Content(**fields["content"])
            fields["parameters"] = dict(fields["parameters"])
            for name in ("stages", "notes"):
                fields[name] = tuple(map(str, fields[name]))
            record = Record(**fields)
            if record.status in typing.get_args(Status):
                records[str(record.output)] = record
    return records
