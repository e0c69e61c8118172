"""File lists with CRC-32, which reveal later damage to a checkpoint's folder.

Orbax gives a folder its name only when everything is written. It notices missing bytes itself, but
not every changed byte.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

_FILE_LIST = "files.json"
_CHUNK = 2**24


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def write_file_list(folder: Path) -> None:
    """List the files of the items in a finished folder: name, bytes, CRC-32."""
    listed = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / _FILE_LIST).write_text(json.dumps(listed))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, in a few words; None if it is whole."""
    try:
        listed = json.loads((folder / _FILE_LIST).read_text())
        for name, (size, crc) in listed.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes where {size} should be"
            if _crc(folder / name) != crc:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None
