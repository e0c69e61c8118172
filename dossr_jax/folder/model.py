"""Which model made a result."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dossr_jax.commands import importing
from dossr_jax.errors import UserError

# Up to this size a file is hashed whole.
_WHOLE = 100 * 10**6
_HEAD = 2**20


def hash_of_model(name_or_path: str) -> str:
    """SHA-256 that stands for a model: a name of the package's own, a file, or a folder of files.

    Of a file of 100 MB or more, only the first MiB (the header, among others), its size and the
    time of its last change count.

    Raises:
      UserError: no such model.
    """
    with importing():  # here: --help needs no networks
        from dossr_jax.pipeline.upscaler import locate
        from dossr_jax.programs.calling import FOLDER
        from dossr_jax.systems.rrdb import PACKAGED, find_packaged

    packaged = name_or_path in PACKAGED
    path = find_packaged(name_or_path) if packaged else locate(name_or_path)
    try:
        if not path.is_dir():
            return _hash_of_file(path)
        exported = path / FOLDER  # it changes no result
        files = sorted(
            file for file in path.rglob("*") if file.is_file() and exported not in file.parents
        )
        lines = [f"{f.relative_to(path).as_posix()} {_hash_of_file(f)}" for f in files]
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: no such model ({reason}); see --model in --help") from error


def name_of_model(name_or_path: str) -> str:
    """By which names of results and their metadata call it."""
    return Path(name_or_path).name.removesuffix(".safetensors")


def _hash_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size < _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = file.read(_HEAD)
    return hashlib.sha256(head + f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
