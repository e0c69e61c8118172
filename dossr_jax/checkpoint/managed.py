"""Checkpoints by an Orbax manager of the caller's, or none at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from dossr_jax.checkpoint.settings import Saved, resume_config, stored_config
from dossr_jax.config import ModelConfig, TrainConfig
from dossr_jax.errors import UserError


class Managed(contextlib.AbstractContextManager):
    """What :class:`Checkpoints` does, by a manager whose options say when to save and what to keep.

    A checkpoint holds the items `state` (with the frozen parameters), `config`, `data` and `log`;
    nothing is written beside it. The manager stays open. Without one nothing is saved.
    """

    def __init__(self, manager: ocp.CheckpointManager | None):
        self._manager = manager
        self._folder = Path(manager.directory) if manager else Path()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def path(self, step: int | None = None) -> Path | None:
        """Folder of a checkpoint, or of all; None without a manager."""
        if self._manager is None:
            return None
        return self._folder if step is None else self._folder / str(step)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step() if self._manager else None

    def due(self, step: int, every: int) -> bool:
        """Whether the manager's own policy saves this step; `every` plays no part."""
        return self._manager is not None and self._manager.should_save(step)

    def resume_config(self, step: int, asked: TrainConfig) -> TrainConfig:
        """As that of :class:`Checkpoints`."""
        stored = self._restore(step, config=ocp.args.JsonRestore())["config"]
        return resume_config(stored, asked, self._folder / str(step))

    def restore(self, step: int, abstract: Any) -> Saved:
        """As that of :class:`Checkpoints`."""
        json_items = {"data": ocp.args.JsonRestore(), "log": ocp.args.JsonRestore()}
        found = self._restore(
            step, state=ocp.args.StandardRestore(abstract._asdict()), **json_items
        )
        return Saved(abstract._replace(**found["state"]), found["data"], found["log"])

    def _restore(self, step: int, **items: Any) -> Any:
        assert self._manager is not None
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise UserError(
                f"{self.path(step)}: not a checkpoint of this run's state and optimizer "
                f"({str(error).splitlines()[0]}); give the manager of another folder"
            ) from error

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
        """Save a step, whatever the policy; one that is saved already stays."""
        if self._manager is None or step in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(state._asdict()),
            "config": ocp.args.JsonSave(stored_config(config, model)),
            "data": ocp.args.JsonSave(data),
            "log": ocp.args.JsonSave(log),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def check(self) -> None:
        """Raise the error of a background save that has failed."""
        if self._manager:
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait until a background save is complete."""
        if self._manager:
            self._manager.wait_until_finished()

    def __exit__(self, *error: object) -> None:
        self.wait()
