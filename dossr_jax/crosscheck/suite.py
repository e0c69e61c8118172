"""What the crosscheck knows of a system: the arrays of its folders, and what computes ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dossr_jax.crosscheck.entries import Entry
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.report import Kind
from dossr_jax.crosscheck.runner import Results, Runner
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings
from dossr_jax.pytorch.state import State
from dossr_jax.systems import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """The stored arrays of one system.

    Attributes:
      recognise: whether a config.yaml is of this system.
      read: (config.yaml, tensors of the weights, file of the arrays) -> its models, by name.
      find: the entries among stored names, in their order.
      kinds: of its entries, by name.
      runner: computes our side in one dtype.
      host: computes entries of kind HOST, in NumPy and float64.
    """

    recognise: Callable[[Settings], bool]
    read: Callable[[Settings, State, Path], dict[str, Model]]
    find: Callable[[Iterable[str]], list[Entry]]
    kinds: Mapping[str, Kind]
    runner: Callable[[Folder, Archive, str], Runner]
    host: Callable[[Folder, Archive, Sequence[Entry]], Results] = lambda *_: {}


def split_networks(state: State, settings: Settings, names: Iterable[str]) -> dict[str, State]:
    """The tensors of every network in a file of several, by the networks' names in config.yaml.

    Prefixes are what `key_prefixes` there says, the name itself otherwise; they are taken off.

    Raises:
      UserError: tensors that belong to none of them.
    """
    given = settings.get("key_prefixes", {})
    prefixes = {name: given.get(name, f"{name}.") for name in names}
    strange = [n for n in state.tensors if not n.startswith(tuple(prefixes.values()))]
    if strange:
        raise UserError(
            f"{state.source}: {strange[0]} belongs to none of the networks of {settings.path}"
        )
    return {name: state.below(prefix) for name, prefix in prefixes.items()}
