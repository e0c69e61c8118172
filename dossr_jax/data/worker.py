"""What a data worker process starts from, so that it is light and ends with its parent.

A spawned process first imports the main module of its parent: here train.py, and so jax and all
of the trainer. Grain's workers start from this module instead. Grain would import jax and
orbax itself where they are installed, though a worker has no use for them: 190 MB and 2 s
instead of 60 MB and half a second.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.spawn
import os
import signal
import sys
import threading
from typing import Any, cast

_GRAIN_PROCESSES = "grain-process-prefetch"
_python_preparation_data = multiprocessing.spawn.get_preparation_data


def start_workers_from_here() -> None:
    """Make Grain's worker processes, and no others, take this module for their main one."""
    multiprocessing.spawn.get_preparation_data = _preparation_data


def _preparation_data(name: str) -> dict[str, Any]:
    data = _python_preparation_data(name)
    if name.startswith(_GRAIN_PROCESSES):
        data.pop("init_main_from_path", None)
        data["init_main_from_name"] = __name__
    return data


def begin(*_: int) -> None:
    """What a Grain worker does first; its number and their count, the arguments, are ignored."""
    end_with_parent()
    # Schedulers and terminals signal whole process groups, yet the parent may need more batches to
    # finish its step, and it alone decides when to stop.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)


def end_with_parent() -> None:
    """Make this worker process end when its parent does, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


if __name__ == "__mp_main__":
    for _module in ("jax", "orbax"):  # importing them now raises ImportError, as Grain expects
        sys.modules[_module] = cast(Any, None)
    # Grain warns that it cannot profile without jax.
    logging.getLogger("absl").setLevel(logging.ERROR)
