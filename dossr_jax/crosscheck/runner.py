"""What computes our side: inputs in a dtype, compiled programs, outputs of layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax import restore
from dossr_jax.crosscheck.entries import Entry
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.method import Controls, Noise, Restoration
from dossr_jax.restore import Layout

Results = dict[str, np.ndarray]


class Runner:
    """Our side in one dtype.

    Subclasses have a method per form, `_form` for entries of "form", that returns our result laid
    out as stored, or None where only the form of a name is known. What several entries share they
    keep.
    """

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        self.folder = folder
        self.archive = archive
        self.dtype = jnp.dtype(dtype)
        # Compiling is most of the work. Float64 is there for what is computed, not for how fast or
        # with which rounding; float32 is compiled as users have it.
        quick = self.dtype == jnp.float64 and jax.default_backend() == "cpu"
        self.compiler_options: dict[str, Any] | None = (
            {"xla_backend_optimization_level": 0} if quick else None
        )
        self._restore_programs: dict[Any, Any] = {}

    def results(self, entries: Sequence[Entry]) -> Results:
        """Results by name of the entry, without those that are None."""
        found = {entry.name: getattr(self, f"_{entry.form}")(entry) for entry in entries}
        return {name: np.asarray(value) for name, value in found.items() if value is not None}

    def layer(self, entry: Entry, outputs: Mapping[str, Array], path: str) -> np.ndarray | None:
        """As much of a layer's output, see :func:`recording`, as is stored: NCHW or tokens.

        That is its first images and channels; None where there is no such layer.
        """
        if path not in outputs:
            return None
        output, stored = outputs[path], self.archive.arrays[entry.stored]
        if stored.ndim == 3:
            tokens = np.asarray(output).reshape(len(output), -1, output.shape[-1])
            return tokens[: len(stored), :, : stored.shape[2]]
        array = nchw(output) if output.ndim == 4 else np.asarray(output)
        return array[: len(stored), : stored.shape[1]]

    def given(self, name: str) -> Array:
        """A stored input in our dtype, as it lies."""
        return jax.device_put(self.archive[name].astype(self.dtype))

    def image(self, name: str) -> Array:
        """A stored NCHW input as NHWC."""
        return jax.device_put(nhwc(self.archive[name]).astype(self.dtype))

    def times(self, name: str) -> Array:
        """Stored times as int32."""
        return jax.device_put(self.archive[name].astype(np.int32))

    def jit(self, fn: Callable[..., Any], **options: Any) -> Any:
        """A function compiled as this dtype is."""
        return jax.jit(fn, compiler_options=self.compiler_options, **options)

    def program(self, module: nnx.Module, fn: Callable[..., Any]) -> Callable[..., Any]:
        """fn(module, *args) as a compiled function of the arguments."""
        graphdef, state = nnx.split(module)
        compiled = self.jit(lambda state, *args: fn(nnx.merge(graphdef, state), *args))
        return lambda *args: compiled(state, *args)

    def restore(
        self,
        model: Any,
        layout: Layout,
        lr: Array,
        size: tuple[int, int] | None = None,
        *,
        noise: Noise | None = None,
        table: SolverTable | None = None,
        controls: Controls | None = None,
    ) -> Restoration:
        """What the program of `dossr-restore` makes of LR canvases (b, h, w, 3).

        Args:
          layout: with `keep`. size: valid rows and columns; None for whole canvases.
        """
        graphdef, state = nnx.split(model)
        arrays = (
            lr,
            np.broadcast_to(np.asarray(size or lr.shape[1:3], np.int32), (len(lr), 2)),
            np.zeros((0, 3), np.int32),
            np.int32(0),
            noise,
            table,
            controls,
        )
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(arrays))
        key = layout, graphdef, jax.tree.structure(arrays), shapes
        if key not in self._restore_programs:
            lowered = restore.restore.lower(graphdef, layout, state, *arrays)
            self._restore_programs[key] = lowered.compile(compiler_options=self.compiler_options)
        return self._restore_programs[key](state, *arrays)


def recording(fn: Callable[..., Any], paths: Iterable[str]) -> Callable[..., Any]:
    """fn(module, *args) -> (its result, outputs of the module's layers at `paths`, by path).

    Paths are dotted; those that the module lacks are left out. The module cannot be used again.
    """

    def recorded(module: nnx.Module, *args: Any) -> tuple[Any, dict[str, Array]]:
        there = {".".join(map(str, path)) for path, _ in nnx.iter_modules(module)}
        outputs: dict[str, Array] = {}
        # The deepest first: a stand-in hides what is below it.
        for path in sorted(there.intersection(paths), key=lambda path: -path.count(".")):
            *above, last = path.split(".")
            owner = functools.reduce(_part, above, module)
            stand_in = _Recorded(_part(owner, last), functools.partial(outputs.__setitem__, path))
            if isinstance(owner, nnx.List):
                owner[int(last)] = stand_in
            else:
                setattr(owner, last, stand_in)
        return fn(module, *args), outputs

    return recorded


class _Recorded(nnx.Module):
    """Stands in for a layer and hands its output on to `keep`, too.

    nnx.capture changes the layers' classes, which other threads are tracing.
    """

    def __init__(self, layer: Any, keep: Callable[[Array], None]):
        self.layer, self.keep = layer, keep

    def __call__(self, *args: Any) -> Array:
        output = self.layer(*args)
        self.keep(output)
        return output


def _part(owner: Any, name: str) -> Any:
    return owner[int(name)] if isinstance(owner, nnx.List) else getattr(owner, name)


def nchw(x: Any) -> np.ndarray:
    """(b, h, w, c) -> (b, c, h, w)."""
    return np.moveaxis(np.asarray(x), -1, 1)


def nhwc(x: np.ndarray) -> np.ndarray:
    """(b, c, h, w) -> (b, h, w, c)."""
    return np.moveaxis(x, 1, -1)
