"""The checkpoints of one run."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dossr_jax.checkpoint.files import damage, write_file_list
from dossr_jax.checkpoint.settings import Saved, resume_config, stored_config
from dossr_jax.config import ModelConfig, TrainConfig
from dossr_jax.errors import UserError

_STEPS, _FROZEN, _DAMAGED = "checkpoints", "frozen", "damaged"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which also lists the files of each checkpoint that it writes."""

    def __init__(self, folder: Path, keep: int):
        self._saving = 0
        # Called once all files are there, before their folder gets its name.
        after = ocp.options.AsyncOptions(post_finalization_callback=self._list_files)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, async_options=after
        )
        super().__init__(folder, options=options)

    def _list_files(self) -> None:
        (unfinished,) = Path(self.directory).glob(f"{self._saving}.orbax-checkpoint-tmp*")
        write_file_list(unfinished)

    def start_saving(self, step: int, **items: Any) -> None:
        """Save in the background; nothing else may be being saved."""
        self._saving = step
        self.save(step, args=ocp.args.Composite(**items), force=True)


class Checkpoints(contextlib.AbstractContextManager):
    """All checkpoints of one run. Every process makes one and calls it in step.

    Leaving the context waits for a background save.
    """

    def __init__(self, folder: Path, *, keep: int, warn: Callable[[str], None]):
        """Open, or make, the folder of a run.

        Args:
          folder: OUTPUT; the same for all processes.
          keep: number of checkpoints kept; older ones are removed once a newer one is complete.
          warn: called in process 0 with one line of text per damaged checkpoint.

        Raises:
          UserError: the folder cannot be made or written.
        """
        self.folder = Path(folder).absolute()
        self._warn = warn
        self._failed = False
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            with self._writing():
                self._manager = _Manager(self.path(), keep)
            self._quiet = stack.pop_all()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return sorted(int(p.name) for p in self.path().glob("*") if p.name.isdigit())

    def path(self, step: int | None = None) -> Path:
        """Folder of a checkpoint, or of all."""
        folder = self.folder / _STEPS
        return folder if step is None else folder / str(step)

    def due(self, step: int, every: int) -> bool:
        """Whether to save this step, at one checkpoint `every` so many steps; 0: none."""
        return every > 0 and step % every == 0

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none.

        Newer damaged ones are moved to OUTPUT/damaged, with a warning.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        found, broken = -1, {}  # no step
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                wrong = damage(self.path(step))
                if wrong is None:
                    found = step
                    break
                broken[step] = wrong
        found = _of_first_process(found)
        if found < 0 and self.steps():
            listed = "; ".join(f"{step}: {wrong}" for step, wrong in broken.items())
            raise UserError(
                f"{self.path()}: every checkpoint in it is damaged ({listed}); copy one back, or "
                "choose another output folder"
            )
        for step, wrong in broken.items():
            aside = self.folder / _DAMAGED / str(step)
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.path(step), aside)
            self._warn(
                f"warning: {self.path(step)} is damaged ({wrong}); moved to {aside.parent}, "
                f"resuming from {self.path(found)}"
            )
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._manager.reload()
        return None if found < 0 else found

    def resume_config(self, step: int, asked: TrainConfig) -> TrainConfig:
        """The configuration to resume with: `asked`, with the model that the run started from.

        Raises:
          UserError: another version wrote the checkpoint, or the run was started with another
            configuration; names every field that differs.
        """
        item = ocp.args.Composite(config=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=item)["config"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path(step)}: has no configuration ({_reason(error)}); choose another "
                "output folder"
            ) from error
        return resume_config(found, asked, self.path(step))

    def restore(self, step: int, abstract: Any) -> Saved:
        """Restore a checkpoint onto the mesh of `abstract`.

        Args:
          abstract: a TrainState of jax.ShapeDtypeStruct with shardings.

        Raises:
          UserError: it does not fit, or the frozen parameters are damaged.
        """
        frozen = self.folder / _FROZEN
        wrong = damage(frozen / "0") if jax.process_index() == 0 else None
        if _of_first_process(wrong is not None):
            raise UserError(
                f"{frozen}: the frozen parameters are damaged ({wrong}); copy the folder back, or "
                "start again in another one"
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(_without_frozen(abstract)),
            data=ocp.args.JsonRestore(),
            log=ocp.args.JsonRestore(),
        )
        only = ocp.args.Composite(params=ocp.args.StandardRestore(dict(abstract.frozen)))
        try:
            found = self._manager.restore(step, args=items)
            with _Manager(frozen, keep=1) as manager:
                params = manager.restore(0, args=only).params
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path(step)}: does not fit this version or optimizer ({_reason(error)}); "
                "resume with those that wrote it, or choose another output folder"
            ) from error
        state = abstract._replace(**found["state"], frozen=params)
        return Saved(state, found["data"], found["log"])

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: TrainConfig,
        model: ModelConfig,
        data: dict[str, Any],
        log: dict[str, Any],
    ) -> None:
        """Start saving; returns once the arrays are copied. A step that is saved already stays.

        Args:
          state: a TrainState; its frozen parameters are saved before the first checkpoint only.
          config: the configuration that was asked for.
          model: the model that is trained; the file that the run started from may have another
            sampler, prompts or latent scale than `config.model`.
          data, log: JSON-able records of the data stream and the log at this step.

        Raises:
          UserError: this checkpoint, or the one before, could not be written.
        """
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()
            first = not self._manager.all_steps()
            self._check_space(state if first else _without_frozen(state))
            if first:
                with _Manager(self.folder / _FROZEN, keep=1) as manager:
                    if manager.all_steps():  # of a run that ended before its first checkpoint
                        manager.delete(0)
                    manager.start_saving(0, params=ocp.args.StandardSave(dict(state.frozen)))
            self._manager.start_saving(
                step,
                state=ocp.args.StandardSave(_without_frozen(state)),
                config=ocp.args.JsonSave(stored_config(config, model)),
                data=ocp.args.JsonSave(data),
                log=ocp.args.JsonSave(log),
            )

    def check(self) -> None:
        """Raise the UserError of a background save that has failed."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait until a background save is complete.

        Raises:
          UserError: it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with self._writing():
                self._manager.close()
        except UserError:
            if kind is None:  # an error on its way says what came first
                raise
        finally:
            del self._manager
            # After a failure asyncio tells of it once more when its future is deleted, which may
            # be as late as the end of the process: the silence stays.
            if not self._failed:
                self._quiet.close()

    def _check_space(self, tree: Any) -> None:
        # A disk that fills up halfway makes TensorStore's threads print their own tracebacks.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.folder).free
        if _of_first_process(free < needed):
            raise OSError(f"it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn file errors into a UserError that names the complete checkpoints."""
        reason = None
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
            reason = _reason(error)
        # Raised out here, it does not keep alive what TensorStore has left of the failure.
        if reason is not None:
            self._failed = True
            left = ", ".join(map(str, self.steps()))
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({reason}); whole ones: "
                f"{left or 'none'}; free space and run the same command again to resume"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Orbax and TensorStore print and log beside the errors that they raise.

    One write that fails fails a hundred others, each of which has its own tracebacks.
    """

    def unraisable(problem: Any) -> None:
        if "Event loop is closed" not in str(problem.exc_value):
            hook(problem)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    gc.collect()
    sys.unraisablehook = hook
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _without_frozen(state: Any) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "frozen"}


def _of_first_process(number: int) -> int:
    """The number that process 0 has, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    # TensorStore tells at length which part it was about before it comes to the reason.
    system = re.search(r"([\w ]+) \[os_error_code", text)
    lines = [system[1].strip()] if system else text.splitlines()
    return lines[0] if lines else type(error).__name__
