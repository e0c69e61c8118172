"""The state of the server: models, turns, and the files of every session."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

from dossr_jax.errors import UserError
from dossr_jax.web.limits import Limits
from dossr_jax.web.models import Models
from dossr_jax.web.restoring import Request, Results, prepare, remove
from dossr_jax.web.turns import Job, Turns

_SWEEP = 30.0  # seconds between two looks at the age of files


@dataclasses.dataclass(frozen=True)
class Session:
    """What a user has asked for last, and what has come of it."""

    job: Job
    results: Results


class Service:
    """Takes requests, one at a time per owner, and removes files when their time has come.

    Attributes:
      folder: of all files, uploads among them; private, and empty at first.
    """

    def __init__(self, models: Models, limits: Limits, folder: Path):
        self.models, self.limits, self.folder = models, limits, folder
        self._turns = Turns(waiting=limits.waiting, seconds=limits.seconds)
        self._sessions: dict[str, Session] = {}
        self._closed = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="sweep", daemon=True)
        self._sweeper.start()

    def start(self, owner: str, request: Request) -> Session:
        """Begin with a request; results of the owner's last one are removed.

        Raises:
          UserError: what is wrong with it, or that the owner has to wait.
        """
        if owner in self._turns.owners():
            raise UserError("your last request is still being worked on; wait, or cancel it")
        results = Results(self.folder / os.urandom(16).hex())
        try:
            results.folder.mkdir()
            work, count = prepare(request, self.models, self.limits, results)
            job = Job(owner, work, count)
            self._turns.add(job)
        except BaseException:
            remove(results.folder)
            raise
        self._forget(owner)
        self._sessions[owner] = Session(job, results)
        return self._sessions[owner]

    def session(self, owner: str) -> Session | None:
        """What an owner has asked for last, while its files are there."""
        return self._sessions.get(owner)

    def before(self, session: Session) -> int:
        """How many pictures are made before the next one of a session."""
        return self._turns.before(session.job)

    def stop(self, owner: str) -> None:
        """Stop an owner's request, after the picture that is being made."""
        self._turns.stop(owner, "cancelled")

    def leave(self, owner: str) -> None:
        """An owner has gone: stop the request and remove its results."""
        self.stop(owner)
        threading.Thread(target=self._remove_when_ended, args=(owner,), daemon=True).start()

    def bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def close(self) -> None:
        """End all work; files stay."""
        self._closed.set()
        self._turns.close()
        self._sweeper.join()

    def _forget(self, owner: str) -> None:
        session = self._sessions.pop(owner, None)
        if session is not None:
            remove(session.results.folder)

    def _remove_when_ended(self, owner: str) -> None:
        session = self._sessions.get(owner)
        while session is not None and session.job.state == "waiting":
            if self._closed.wait(0.1):
                return
        if session is self._sessions.get(owner):
            self._forget(owner)

    def _sweep(self) -> None:
        while not self._closed.wait(_SWEEP):
            self.remove_old()

    def remove_old(self) -> None:
        """Remove files that are older than they may be, but for those of requests that wait."""
        oldest = time.time() - 60 * self.limits.keep
        for owner, session in list(self._sessions.items()):
            if session.job.state != "waiting" and not _is_younger(session.results.folder, oldest):
                self._forget(owner)
        active = {session.results.folder for session in self._sessions.values()}
        for folder in set(self.folder.iterdir()) - active:
            if not _is_younger(folder, oldest):
                remove(folder)


def _is_younger(path: Path, oldest: float) -> bool:
    try:
        return path.stat().st_mtime > oldest
    except OSError:
        return False
