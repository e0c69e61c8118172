"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary


def check_folder(path: str | os.PathLike[str]) -> None:
    """Check that files can be written into `path`, a folder or the place of one.

    Raises:
      UserError: they cannot.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"{path}: cannot be written into; choose a folder you can write to")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file; folders are made. It gets a temporary name beside its own and is renamed.

    Raises:
      UserError: anything that the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as place:
            with open(place, "r+b") as file:
                file.write(content)
            os.replace(place, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some disk space" if full else "choose a folder you can write to"
        reason = error.strerror or error
        raise UserError(f"{path}: cannot write ({reason}); {remedy}") from error
