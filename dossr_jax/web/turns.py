"""Whose picture is next: one device, many users, each served a picture in turn."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Generator
from typing import Any, Literal

from dossr_jax.errors import UserError

State = Literal["waiting", "finished", "stopped", "failed"]


@dataclasses.dataclass(eq=False)
class Job:
    """A request's work.

    Attributes:
      owner: whose it is; an owner has one at a time.
      work: a picture whenever it is asked for the next item; it tidies when it is closed.
      count, done: pictures that are asked for, and that are done.
      state: "waiting" as long as anything is to be done.
      busy: whether a picture of it is being made; since: when that began, in time.monotonic().
      reason: why it was stopped or failed.
    """

    owner: str
    work: Generator[Any, None, None]
    count: int
    done: int = 0
    state: State = "waiting"
    busy: bool = False
    since: float = 0.0
    reason: str = ""
    spent: float = 0.0
    asked_to_stop: str = ""


class Turns:
    """A thread that makes the pictures of all jobs, one after the other.

    The job that was served last goes behind the others: who wants one picture waits for one picture
    of everyone, not for all of someone's hundred.
    """

    def __init__(self, *, waiting: int, seconds: float):
        """`waiting`, `seconds`: see Limits."""
        self._waiting, self._seconds = waiting, seconds
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="restore", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Queue a job.

        Raises:
          UserError: its owner has one that has not ended, or too many wait.
        """
        with self._changed:
            if any(other.owner == job.owner for other in self._jobs):
                raise UserError("your last request is still being worked on; wait or cancel it")
            if len(self._jobs) >= self._waiting:
                raise UserError(
                    f"{len(self._jobs)} requests are waiting; try again in some minutes"
                )
            self._jobs.append(job)
            self._changed.notify()

    def stop(self, owner: str, reason: str) -> None:
        """Stop an owner's job, if there is one, after the picture that is being made."""
        with self._changed:
            for job in self._jobs:
                if job.owner == owner:
                    job.asked_to_stop = reason
                    self._changed.notify()

    def before(self, job: Job) -> int:
        """How many pictures are made before the next one of a job."""
        with self._changed:
            if job.busy or job not in self._jobs:
                return 0
            others = list(self._jobs)
            place = others.index(job)
            return place + any(other.busy for other in others[place:])

    def owners(self) -> set[str]:
        """Whose jobs have not ended."""
        with self._changed:
            return {job.owner for job in self._jobs}

    def close(self) -> None:
        """End the thread after the picture that is being made, and all jobs."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            begin = job.since = time.monotonic()
            state: State = "waiting"
            reason = job.asked_to_stop
            try:
                if reason:
                    state = "stopped"
                else:
                    next(job.work)
            except StopIteration:
                state = "finished"
            except UserError as error:
                state, reason = "failed", str(error)
            except Exception as error:  # One user's picture ends nobody else's.
                state, reason = "failed", f"{type(error).__name__} ({error}); try other settings"
            job.spent += time.monotonic() - begin
            if state == "waiting":
                job.done += 1
                if job.done == job.count:
                    state = "finished"
                elif job.spent > self._seconds:
                    state, reason = "stopped", f"after {self._seconds:g} s, the limit here"
            if state != "waiting":
                job.work.close()
            self._put_back(job, state, reason)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or not self._open)
            if not self._open:
                return None
            # Who has cancelled need not wait until it is their turn.
            job = next((job for job in self._jobs if job.asked_to_stop), self._jobs[0])
            job.busy = not job.asked_to_stop
            return job

    def _put_back(self, job: Job, state: State, reason: str) -> None:
        with self._changed:
            self._jobs.remove(job)
            job.busy, job.reason, job.state = False, reason, state
            if state == "waiting":
                self._jobs.append(job)
