"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder that takes the place of `path`, once it is filled.

    Raises:
      UserError: it cannot be written; what was at `path` is still there.
    """
    folder = path
    try:
        with temporary(path, folder=True) as work:
            folder = work / path.name
            folder.mkdir()
            yield folder
            if path.exists():
                os.replace(path, work / "old")
            os.replace(folder, path)
    except UserError as error:  # about a file that nobody will find
        raise UserError(str(error).replace(str(folder), str(path))) from error
    except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be written ({reason}); free space or choose another place"
        ) from error
