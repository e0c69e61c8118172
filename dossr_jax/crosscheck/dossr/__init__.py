"""DoSSR's folders: the release's networks, sampler, colour fixes, training pass and schedules."""

from __future__ import annotations

from pathlib import Path

from dossr_jax.crosscheck.dossr import host
from dossr_jax.crosscheck.dossr.entries import KINDS, find_entries
from dossr_jax.crosscheck.dossr.networks import Runner
from dossr_jax.crosscheck.suite import Suite
from dossr_jax.pytorch.infer import Settings, config_from_release_yaml
from dossr_jax.pytorch.state import State
from dossr_jax.systems import Model
from dossr_jax.systems.dossr.context import with_context, without_text
from dossr_jax.systems.dossr.release import read_release


def _read(settings: Settings, state: State, arrays: Path) -> dict[str, Model]:
    model = read_release(state, config=config_from_release_yaml(settings.path))
    return {"dossr": without_text(with_context(model, arrays))}


SUITE = Suite(
    recognise=lambda settings: "params" in settings.tree,
    read=_read,
    find=find_entries,
    kinds=KINDS,
    runner=Runner,
    host=host.results,
)
