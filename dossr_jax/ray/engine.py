"""The tasks of a command line on a Ray cluster: workers do them, the driver keeps the books."""

from __future__ import annotations

import argparse
import functools
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dossr_jax
from dossr_jax.engines import check_shared, load
from dossr_jax.errors import UserError
from dossr_jax.folder.manifest import Record
from dossr_jax.folder.planning import Task
from dossr_jax.folder.progress import Outcome, Progress
from dossr_jax.folder.run import Job, Run
from dossr_jax.folder.sharing import elsewhere
from dossr_jax.pipeline import Settings, Upscaler
from dossr_jax.ray.cluster import Workers, connect, path_of_model, plan_workers

# Tasks that a worker gets at a time, per image of a batch: enough to read and write beside the
# device, few to do again where a worker dies.
_MOST_TASKS = 8
_ROUNDS = 4  # Each worker comes back for tasks so often, at least: the last ones end together.
_RETRIES = 2  # of tasks whose worker died
_PATIENCE = 20  # seconds

Numbered = tuple[int, Task]


class Cluster:
    """Workers of a Ray cluster, which see the files that this process does.

    All tasks are recorded as started before any is handed out: only the driver writes the manifest.
    Tasks of a worker that dies are done again by others, from the first of those it had.
    """

    _workers: Workers
    _args: argparse.Namespace

    def prepare(self, args: argparse.Namespace, fields: dict[str, Any]) -> Settings:
        """Connect; a worker loads the model for this, so that the driver needs no accelerator."""
        import ray  # pyright: ignore[reportMissingImports]

        connect(args.address)
        self._workers = plan_workers(args.accelerator, args.accelerators_per_worker, args.workers)
        print(f"Ray: {self._workers}", flush=True)
        self._args = _elsewhere(args)
        first = ray.remote(max_calls=1, **self._workers.resources)(_examine)
        answer = first.remote(self._workers, self._args, fields, dossr_jax.__version__)
        with _UserErrors():
            if not ray.wait([answer], timeout=_PATIENCE)[0]:
                print(
                    f"note: waiting for a worker ({self._workers}) and its model", file=sys.stderr
                )
            settings, licence = ray.get(answer)
        if licence is not None:
            print(f"note: {licence}", file=sys.stderr)
        return settings

    def restore(self, tasks: Sequence[Task], job: Job, put: Callable[[Record], None]) -> Outcome:
        with Progress(tasks, job.folder, put) as progress:
            waiting: dict[int, Task] = {}
            for number, task in enumerate(tasks):
                if task.action == "impossible":
                    progress.done(task, job.failed(task, UserError(task.reason)))
                elif task.action == "restore":
                    waiting[number] = task
                    put(job.record(task))
            # What is left after the first pass was in the hands of workers that died several times:
            # one at a time shows which of them they died of.
            for alone in (False, True):
                for number, record in self._done(list(waiting.items()), job, alone):
                    if task := waiting.pop(number, None):
                        progress.done(task, record)
            for task in waiting.values():
                problem = "its worker died each time, out of memory or by a damaged file"
                progress.done(task, job.failed(task, UserError(f"{problem}; leave this file out")))
        return progress.outcome

    def _done(
        self, waiting: Sequence[Numbered], job: Job, alone: bool
    ) -> Iterator[tuple[int, Record]]:
        """Records of tasks as workers finish them; none of those whose workers died too often."""
        if not waiting:
            return
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.client import ray as client  # pyright: ignore[reportMissingImports]

        most = 1
        if not alone:
            batch = job.settings.images_at_a_time
            most = tasks_at_a_time(len(waiting), self._workers.count, batch)
        tasks = [(number, elsewhere(task)) for number, task in waiting]
        parts = [tasks[i : i + most] for i in range(0, len(tasks), most)]
        # What waits at a worker that dies counts as tried.
        ahead = 1 if alone else 2
        hand_out = functools.partial(
            _hand_out, _Restorer, self._workers, self._args, job.elsewhere(), parts, ahead, _RETRIES
        )
        with _UserErrors():
            if client.is_connected():  # by ray://, where Ray Data has no driver
                driver = ray.remote(num_cpus=0)(_Driver).remote(hand_out)
                done = iter(lambda: ray.get(driver.next.remote()), None)
            else:
                done = hand_out()
            for records in done:
                yield from records


def _hand_out(
    restorer: type[_Restorer],
    workers: Workers,
    args: argparse.Namespace,
    job: Job,
    parts: Sequence[Sequence[Numbered]],
    ahead: int,
    retries: int,
) -> Iterator[list[tuple[int, Record]]]:
    """Let workers do parts of the tasks, of which each has `ahead` at a time; yields records."""
    import ray.data  # pyright: ignore[reportMissingImports]

    rows = [{"tasks": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    context = dataset.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = -1  # A large photo may take long.
    with warnings.catch_warnings():
        # No other way to limit retries yet; 2.64, which has none, is excluded.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        results = dataset.map_batches(
            restorer,
            fn_constructor_args=(workers, args, job),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(workers.count, len(rows)), max_tasks_in_flight_per_actor=ahead
            ),
            max_restarts=-1,
            max_task_retries=retries,
            **workers.resources,
        )
    batches: Any = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        for packed in batch["records"].to_pylist():
            yield pickle.loads(packed)


class _Driver:
    """Stands for this process as the driver of Ray Data, on the cluster."""

    def __init__(self, hand_out: Callable[[], Iterator[Any]]):
        self._done = hand_out()

    def next(self) -> Any:
        return next(self._done, None)


class _Restorer:
    """A worker: the model, and the function of Ray Data that restores tasks with it."""

    def __init__(self, workers: Workers, args: argparse.Namespace, job: Job):
        check_shared(job)
        workers.check_devices()
        self._upscaler, _ = load(args, {})
        self._job = job

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        parts = [pickle.loads(packed) for packed in batch["tasks"].to_pylist()]
        return {"records": [pickle.dumps(_restore(self._upscaler, self._job, p)) for p in parts]}


def _restore(upscaler: Upscaler, job: Job, tasks: Sequence[Numbered]) -> list[tuple[int, Record]]:
    numbers = {task.target: number for number, task in tasks}
    records: list[tuple[int, Record]] = []

    def done(task: Task, record: Record) -> None:
        records.append((numbers[task.target], record))

    try:
        Run(upscaler, job, lambda record: None, done).run([task for _, task in tasks])
    except Exception as error:
        if len(tasks) > 1:
            raise  # They are tried one by one.
        ((number, task),) = tasks
        return [(number, job.failed(task, error))]
    return records


def _examine(
    workers: Workers, args: argparse.Namespace, fields: dict[str, Any], version: str
) -> tuple[Settings, str | None]:
    """What the driver wants to know of the model: settings, and what its licence does not allow."""
    if dossr_jax.__version__ != version:
        raise UserError(
            f"a worker has dossr-jax {dossr_jax.__version__}, and this machine {version}; install "
            "the same version on every node"
        )
    workers.check_devices()
    upscaler, settings = load(args, fields)
    return settings, upscaler.system.licence


def _elsewhere(args: argparse.Namespace) -> argparse.Namespace:
    """Options of the model for processes with another working directory."""
    changed = {
        name: path_of_model(value)
        for name in ("model", "preprocessor")
        if (value := getattr(args, name)) is not None
    }
    if args.tokenizer is not None:
        changed["tokenizer"] = args.tokenizer.absolute()
    return argparse.Namespace(**{**vars(args), **changed})


def tasks_at_a_time(tasks: int, workers: int, batch_size: int) -> int:
    """How many a worker gets at once: whole batches, and several times some."""
    batches = tasks // (_ROUNDS * workers * batch_size)
    return batch_size * min(max(batches, 1), _MOST_TASKS)


class _UserErrors:
    """A context in which errors of Ray become lines for users, those of workers among them."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, UserError) and not isinstance(cause, RayError):
                raise UserError(str(cause)) from error
            cause = inner
        if isinstance(error, RayError):
            reason = str(error).strip().splitlines()[-1]
            _, found, line = reason.partition(f"{UserError.__name__}: ")
            if found:  # of a worker that was about to begin
                raise UserError(line) from error
            raise UserError(
                f"the cluster gave up ({reason}); where dossr-jax is on every node, the same "
                "command goes on from here"
            ) from error
