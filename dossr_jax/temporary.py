"""Files and folders under temporary names, which no end of a command leaves behind."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_places: set[Path] = set()
_changing = threading.Lock()


@contextlib.contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Make an empty file, or folder, beside `path`; it is removed if it is still there at the end.

    To write `path` whole or not at all, open the file with "r+b", fill it, and rename it. Its name
    is hidden: ".<16 hexadecimal digits>.tmp". Raises OSError where it cannot be made.
    """
    place = path.parent / f".{os.urandom(8).hex()}.tmp"
    try:
        with _changing:
            _places.add(place)
            place.mkdir() if folder else place.touch(exist_ok=False)
        yield place
    finally:
        with _changing:
            _remove(place)
            _places.discard(place)


def remove_all() -> None:
    """Remove them all, for the process ends: from now on whoever makes or leaves one waits."""
    _changing.acquire()
    for place in _places:
        with contextlib.suppress(OSError):
            _remove(place)


def _remove(place: Path) -> None:
    if place.is_dir():
        import shutil  # here: commands import this module before they can be stopped

        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
