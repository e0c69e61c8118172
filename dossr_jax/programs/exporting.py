"""Programs to data and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax
import jax
import jax.export
import jaxlib

import dossr_jax
from dossr_jax.programs.description import Description
from dossr_jax.programs.files import Stored, damaged, read_program

_CUDNN, _LAPACK = b"__cudnn$", b"lapack_"
# JAX promises nothing of these kernels' interfaces; who runs a program traced by another version of
# it has XLA check them.
_KERNELS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")


def export_program(
    function: Callable[..., Any], arguments: Sequence[Any], platform: str, description: Description
) -> Stored:
    """Trace a function of positional arguments for a platform, which need not be at hand.

    Arguments are arrays or their shapes. What it returns must be a flat tuple of arrays.
    """
    function = _unjitted(function)
    leaves, tree = jax.tree.flatten(tuple(arguments))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]

    # Flat: the data then tells of no class of ours.
    def flat(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(*jax.tree.unflatten(tree, leaves)))

    with _no_sources():
        exported = jax.export.export(
            jax.jit(flat),
            platforms=[platform],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(k) for k in _KERNELS],
        )(*shapes)
    notes = versions() | {"cudnn": _CUDNN in exported.mlir_module_serialized}
    return Stored(description, notes, bytes(exported.serialize()))


def _unjitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a function traces: JAX allows options of its compiler for whole programs alone."""
    if isinstance(function, functools.partial):
        return functools.partial(_unjitted(function.func), *function.args, **function.keywords)
    return getattr(function, "__wrapped__", function)


def load_program(path: Path, description: Description) -> jax.export.Exported | None:
    """The program in a file; None where another version of JAX wrote what this one cannot read.

    Raises:
      UserError: the file is damaged.
    """
    stored = read_program(path)
    if stored.description != description:
        raise damaged(path, ValueError("its description is another program's"))
    try:
        return jax.export.deserialize(bytearray(stored.data))
    except Exception as error:  # the reader of its format raises anything
        if stored.notes.get("jax") != jax.__version__:
            return None
        raise damaged(path, error) from error


def call_of(exported: jax.export.Exported) -> Callable[..., Any]:
    """What calls a program, to be jitted."""
    if _LAPACK not in exported.mlir_module_serialized:
        # For every program of CPUs JAX would import LAPACK's kernels, and SciPy with them.
        unchecked = jax.export.DisabledSafetyCheck.platform()
        exported = dataclasses.replace(
            exported,
            platforms=("unnamed",),
            disabled_safety_checks=(*exported.disabled_safety_checks, unchecked),
        )
    return exported.call


def versions() -> dict[str, str]:
    """Of the package and what traces its programs."""
    modules = {"dossr_jax": dossr_jax, "jax": jax, "jaxlib": jaxlib, "flax": flax}
    return {name: module.__version__ for name, module in modules.items()}


@contextmanager
def _no_sources() -> Iterator[None]:
    """Files and functions that called, which are those of this machine, stay out of a program."""
    settings = {
        "jax_hlo_source_file_canonicalization_regex": ".*",
        "jax_traceback_in_locations_limit": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
