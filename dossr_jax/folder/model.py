"""Which model made a result."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from dossr_jax.commands import importing
from dossr_jax.config import UPSCALE, Task
from dossr_jax.errors import UserError
from dossr_jax.pipeline import MODELS
from dossr_jax.pipeline.settings import DEFAULT_MODEL

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


def config_of_model(name_or_path: str) -> Any | None:
    """The configuration that a model's file tells; None of those that are converted first.

    Raises:
      UserError: no such model.
    """
    with importing():  # here: --help needs no networks
        from dossr_jax.pipeline.upscaler import locate
        from dossr_jax.systems import is_model, open_model
        from dossr_jax.systems.rrdb import PACKAGED

    if name_or_path in PACKAGED or not is_model(path := locate(name_or_path)):
        return None
    return open_model(path)[0]


def factor_of_model(name_or_path: str) -> int:
    """Pixels of its results per pixel of the input; errors as of :func:`config_of_model`."""
    from dossr_jax.systems import system_of

    config = config_of_model(name_or_path)
    return UPSCALE if config is None else system_of(config).geometry(config).factor


def model_for_task(name_or_path: str | None, task: Task | None) -> str:
    """The model that is asked for: by name or path, the package's own of a task, or its first.

    Raises:
      UserError: a model that was not made for the task, or none of it comes with the package.
    """
    if task is None:
        return DEFAULT_MODEL if name_or_path is None else name_or_path
    remedy = f"train one with configs/mini_{task}.py or give --model FILE"
    if name_or_path is None:
        name_or_path = f"dossr-{task}"
        if name_or_path not in MODELS:
            raise UserError(f"task {task}: no model of it comes with the package; {remedy}")
    if getattr(config_of_model(name_or_path), "task", None) != task:
        raise UserError(f"{name_or_path}: not a model for task {task}; {remedy}, or leave it out")
    return name_or_path


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
