"""Which system a checkpoint belongs to, by the names in its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from dossr_jax.errors import UserError
from dossr_jax.pytorch.state import State
from dossr_jax.systems.base import Part, System
from dossr_jax.systems.registry import SYSTEMS


def recognise(states: Sequence[State]) -> tuple[System, State]:
    """The system of a checkpoint that lies in one file or several, and all of it together.

    Names of the result have the prefixes of their parts.

    Raises:
      UserError: files of no system, of several, twice the same part, or with a part missing.
    """
    fitting = [(system, _parts(system, states)) for system in SYSTEMS]
    for system, found in fitting:
        if len(found) == len(system.parts) > 0 and _files(found) == len(states):
            return system, _join(found)
    _refuse(states, fitting)


def _parts(system: System, states: Sequence[State]) -> dict[Part, tuple[State, State]]:
    """Parts of a system, each with its file and its tensors, in files that have nothing else."""
    found = {}
    for state in states:
        for part in system.parts:
            names = state.below(part.prefix).rename(part.rename)
            if not (part.prefix and _has(part, names)):
                names = state.rename(part.rename)
            if _has(part, names) and part not in found:
                found[part] = (state, names)
    return found


def _has(part: Part, state: State) -> bool:
    return any(mark in state.tensors for mark in part.marks)


def _files(found: dict[Part, tuple[State, State]]) -> int:
    return len({id(state) for state, _ in found.values()})


def _join(found: dict[Part, tuple[State, State]]) -> State:
    """All parts, with their prefixes, and what belongs to none of them as it is called."""
    source = ", ".join(dict.fromkeys(state.source for state, _ in found.values()))
    tensors, doubled = {}, []
    for part, (_, names) in found.items():
        tensors |= {part.prefix + name: tensor for name, tensor in names.tensors.items()}
        doubled += [part.prefix + name for name in names.doubled]
    prefixes = tuple(part.prefix for part in found)
    for state, names in found.values():
        if len(names.tensors) < len(state.tensors):  # a file of several parts
            others = state.select(lambda name: not name.startswith(prefixes))
            tensors |= others.tensors
    return State(source, tensors, tuple(doubled))


def _refuse(
    states: Sequence[State],
    fitting: Sequence[tuple[System, dict[Part, tuple[State, State]]]],
) -> NoReturn:
    """Say what the files look like and what is missing."""
    sources = ", ".join(state.source for state in states)
    system, found = max(fitting, key=lambda pair: (_files(pair[1]), len(pair[1])))
    if not found:
        first = next(iter(states[0].tensors), "missing")
        known = ", ".join(system.title for system in SYSTEMS if system.parts)
        raise UserError(
            f"{sources}: neither a checkpoint of {known} nor of SD 2.x (its first key is {first}); "
            "check the path"
        )
    if _files(found) < len(states):
        known = {id(state) for state, _ in found.values()}
        strange = next(state.source for state in states if id(state) not in known)
        raise UserError(
            f"{strange}: does not belong to the others, which look like {system.title}; give the "
            "files of one model"
        )
    has = " and ".join(part.what for part in found)
    lacks = " and ".join(part.what for part in system.parts if part not in found)
    raise UserError(f"{sources}: {system.title}'s {has} without its {lacks}; give all of them")
