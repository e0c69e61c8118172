"""Programs to call: in memory, else from files, else traced, and then kept for the next start."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.sharding import Sharding

from dossr_jax.errors import UserError
from dossr_jax.gpu import COMPILER_OPTIONS, place_of
from dossr_jax.programs.description import Description, argument_lines, describe
from dossr_jax.programs.exporting import call_of, export_program, load_program, versions
from dossr_jax.programs.files import find_program, keep_newest, write_program

# Programs that the user's folder holds; one is 100 kB for dossr-mini, 1 MB at SD 2.1's size.
_MOST_KEPT = 200
# Name of the folder beside a model.
FOLDER = "programs"

Call = Callable[..., Any]


def folder_for(model: Path | None, named: str | Path | None) -> Path | None:
    """Where the exported programs of a model lie: as named, else in or beside what it is read from.

    Raises:
      UserError: the folder that was named is none.
    """
    if named is not None:
        if not Path(named).is_dir():
            raise UserError(f"{named}: no such folder; export programs into it, or leave it out")
        return Path(named)
    if model is None or not folder_of(model).is_dir():
        return None
    return folder_of(model)


def folder_of(model: Path) -> Path:
    """In or beside what a model is read from."""
    return (model if model.is_dir() else model.parent) / FOLDER


def shapes_of(tree: Any, formats: Any) -> Any:
    """Arrays, or shapes, as shapes that lie as a sharding says, or a tree of these and formats."""
    if isinstance(formats, Sharding):
        sharding = formats
        formats = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree, formats
    )


class Loaded:
    """A program that was stored, `compiled`; called with the arguments that it was traced with."""

    def __init__(self, compiled: Any):
        self.compiled = compiled

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*jax.tree.leaves(arguments))


class Programs:
    """The programs of one model on one device.

    Attributes:
      model: what programs depend on, besides shapes: its configuration and dtypes, as JSON.
      folder: where exported programs may lie.
      keep: where programs that were traced are kept for the next start.
    """

    def __init__(
        self, model: Mapping[str, Any], *, folder: Path | None = None, keep: Path | None = None
    ):
        self.model, self.folder, self.keep = model, folder, keep
        self._ready: dict[tuple[Any, ...], Call] = {}

    def ready(self, name: str, function: Call, layout: Any, arguments: Sequence[Any]) -> Call:
        """`function` for these arguments (arrays or shapes), compiled if it is stored or kept.

        It must be jitted and return a tuple of arrays. `name` and `layout` tell what it is besides
        the model's, whose weights, always the same, are the first argument.

        Raises:
          UserError: an exported program that is damaged.
        """
        signature = (name, layout, *argument_lines(arguments[1:]))
        if signature not in self._ready:
            self._ready[signature] = self._make(name, function, layout, arguments)
        return self._ready[signature]

    def _make(self, name: str, function: Call, layout: Any, arguments: Sequence[Any]) -> Call:
        leaves = jax.tree.leaves(tuple(arguments))
        platform = _platform_of(leaves[0].sharding)
        description = describe(name, self.model, layout, arguments, platform)
        exported = self._find(description)
        if exported is None and self.keep is not None:
            exported = self._trace(function, arguments, platform, description)
        if exported is None:
            return function
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place_of(a)) for a in leaves]
        call = jax.jit(call_of(exported), compiler_options=COMPILER_OPTIONS)
        return Loaded(call.lower(*shapes).compile())

    def _find(self, description: Description) -> jax.export.Exported | None:
        if self.folder is not None and (path := find_program(self.folder, description)):
            return load_program(path, description)
        if self.keep is None or not (path := find_program(self.keep, _of_now(description))):
            return None
        try:
            exported = load_program(path, _of_now(description))
            os.utime(path)
            return exported
        except (UserError, OSError):  # ours alone: it is traced and written again
            return None

    def _trace(
        self, function: Call, arguments: Sequence[Any], platform: str, description: Description
    ) -> jax.export.Exported:
        assert self.keep is not None
        stored = export_program(function, arguments, platform, _of_now(description))
        try:
            write_program(self.keep, platform, stored)
            keep_newest(self.keep, _MOST_KEPT)
        except (UserError, OSError):  # a full disk costs the next start some time, no more
            pass
        # As the next start will read it, so that XLA's program is found under the same name.
        return jax.export.deserialize(bytearray(stored.data))


def _platform_of(sharding: Sharding) -> str:
    """Of its devices, as jax.export names it."""
    found = next(iter(sharding.device_set)).platform
    return jax.export.default_export_platform() if found == jax.default_backend() else found


def _of_now(description: Description) -> Description:
    """With the versions of what traced it: a kept program serves these alone."""
    return description | {"versions": versions()}
