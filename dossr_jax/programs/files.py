"""Files of stored programs: zip archives, which check themselves, with a description inside."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dossr_jax.errors import UserError
from dossr_jax.programs.description import Description, key_of
from dossr_jax.temporary import temporary

SUFFIX = ".program.zip"
_DESCRIPTION, _NOTES, _PROGRAM = "description.json", "notes.json", "program.bin"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A stored program.

    Attributes:
      description: what it depends on, see :func:`dossr_jax.programs.describe`.
      notes: for people and messages: versions of what made it by name, and whether it calls cuDNN.
      data: as jax.export serializes it.
    """

    description: Description
    notes: Mapping[str, Any]
    data: bytes


def find_program(folder: Path, description: Description) -> Path | None:
    """The file of a program in a folder, by the key at the end of its name."""
    key = key_of(description)
    return next(iter(folder.glob(f"*{key}{SUFFIX}")), None)


def read_program(path: Path) -> Stored:
    """Read a stored program.

    Raises:
      UserError: damaged, or not such a file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            parts = [file.read(name) for name in (_DESCRIPTION, _NOTES, _PROGRAM)]
        stored = Stored(json.loads(parts[0]), json.loads(parts[1]), parts[2])
        if not path.name.endswith(key_of(stored.description) + SUFFIX):
            raise ValueError("its name is another program's")
        return stored
    except (OSError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What is wrong with a file, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: damaged program ({reason}); export it again, or delete it")


def write_program(folder: Path, label: str, stored: Stored) -> Path:
    """Write a program into a folder, whole or not at all; `label` begins its name.

    Raises:
      UserError: it cannot be written.
    """
    path = folder / f"{label}-{key_of(stored.description)}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(path) as place:
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr(_DESCRIPTION, json.dumps(stored.description, indent=1))
                file.writestr(_NOTES, json.dumps(dict(stored.notes), indent=1))
                file.writestr(_PROGRAM, stored.data)
            os.replace(place, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error
    return path


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the programs of a folder that were used last."""
    times = {}
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            times[path] = path.stat().st_mtime
        except OSError:  # another process removed it
            continue
    for path in sorted(times, key=times.__getitem__)[: max(0, len(times) - count)]:
        path.unlink(missing_ok=True)
