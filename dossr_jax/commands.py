"""How command lines start and end: their exit statuses, Ctrl-C and SIGTERM, and `| head`.

Every command ends with one of these statuses, or with one of its own:

    2    bad input, explained in one line
    130  stopped by Ctrl-C (SIGINT)
    141  nobody reads the output any more, as in `| head`
    143  stopped by SIGTERM

Python runs handlers of signals in the main thread, between two of its instructions: not while a
library is loaded or XLA compiles. A KeyboardInterrupt that comes during an import or a callback
gets lost, and ending Python in the usual way while XLA compiles crashes. So a thread waits for the
signals, and ends the process by itself. This module imports nothing heavy: it comes first.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from dossr_jax import temporary
from dossr_jax.errors import BAD_INPUT, UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOBODY_READS = 128 + 13  # as shells report SIGPIPE, which Windows lacks
_GRACE = 1.0  # seconds that tidying may take

# Signals whose next one does not end the process: a handler of Python's deals with it.
pardoned: set[int] = set()

_stopped = "stopped"
_sockets: tuple[socket.socket, socket.socket] | None = None


def launch(module: str) -> int:
    """Run the `main` of a module as this process's command line; returns the exit status.

    Unlike a plain call of it, this one can be stopped while the module is being imported.
    """
    heed_signals()
    with importing():
        main = importlib.import_module(module).main
    return main()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports that take long: what they make stays, and no garbage is looked for in it.

    Python would look through all of it again and again, a quarter of the time that a start takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


restore = functools.partial(launch, "dossr_jax.cli")
train = functools.partial(launch, "dossr_jax.training.cli")
prepare = functools.partial(launch, "dossr_jax.data.prepare")
plan = functools.partial(launch, "dossr_jax.plan.__main__")
convert = functools.partial(launch, "dossr_jax.convert.__main__")
evaluate = functools.partial(launch, "dossr_jax.evaluate.__main__")
export = functools.partial(launch, "dossr_jax.export")
crosscheck = functools.partial(launch, "dossr_jax.crosscheck")
ray = functools.partial(launch, "dossr_jax.ray.__main__")
web = functools.partial(launch, "dossr_jax.web.__main__")


def command_line(stopped: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator of a command's `main`, which returns the exit status; the module lists them.

    Called without arguments, `main` is the command line of this process, which then ends, with the
    line `stopped`, within two seconds of Ctrl-C or SIGTERM and at once at the second. Called with a
    list of arguments, from Python, it leaves signals alone, and a KeyboardInterrupt makes it
    print `stopped` and return 130.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            if arguments is None:
                heed_signals(stopped)
            try:
                try:
                    return main(arguments)
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return BAD_INPUT
                except KeyboardInterrupt:
                    print(stopped, file=sys.stderr)
                    return 128 + signal.SIGINT
                finally:
                    print(end="", flush=True)  # Python's end is too late to notice a lost reader
            except BrokenPipeError:
                if arguments is not None:
                    raise
                nowhere = os.open(os.devnull, os.O_WRONLY)
                for output in (1, 2):  # what is still buffered goes there when Python ends
                    os.dup2(nowhere, output)
                return _NOBODY_READS

        return run

    return decorate


def heed_signals(stopped: str = "stopped") -> None:
    """From now on, end this process at Ctrl-C and SIGTERM: print `stopped`, remove temporary files.

    One that the process was started to ignore, as by nohup, stays ignored. Only the main thread
    can see to it; in others nothing happens.
    """
    global _stopped, _sockets
    if threading.current_thread() is not threading.main_thread():
        return
    _stopped = stopped
    if _sockets is not None:
        return
    _sockets = received, sent = socket.socketpair()
    sent.setblocking(False)
    # Written to when a signal arrives, whatever the main thread does.
    signal.set_wakeup_fd(sent.fileno())
    threading.Thread(target=_wait, args=(received,), daemon=True, name="signals").start()
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave_to_thread)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    pass


def _wait(received: socket.socket) -> None:
    while (number := received.recv(1)[0]) not in _SIGNALS or number in pardoned:
        pardoned.discard(number)
    threading.Thread(target=_end, args=(128 + number,), daemon=True).start()
    select.select([received], [], [], _GRACE)  # a second signal, or tidying takes too long
    os._exit(128 + number)


def _end(status: int) -> None:
    """End the process, and leave nothing unfinished."""
    temporary.remove_all()
    # A progress bar, or the terminal's ^C, is an unfinished line.
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    unfinished = os.isatty(2) or (tqdm is not None and len(tqdm._instances))
    with contextlib.suppress(OSError):
        # Not by sys.stderr: the main thread may hold its lock.
        os.write(2, f"{os.linesep if unfinished else ''}{_stopped}{os.linesep}".encode())
    with contextlib.suppress(OSError, ValueError):
        print(end="", flush=True)
    if "multiprocessing" in sys.modules:
        import multiprocessing
        from multiprocessing import util

        # Semaphores are removed, which would be reported as leaked.
        util._run_finalizers(0)  # pyright: ignore[reportAttributeAccessIssue]
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(status)
