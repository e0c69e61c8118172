"""DiffBIR's checkpoints: Stable Diffusion, a ControlNet and the first network, together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dossr_jax.config import RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import infer_rrdb
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import (
    CONTROL_PREFIX,
    RRDB_PREFIX,
    VAE_PREFIX,
    Row,
    control_table,
    rrdb_table,
    with_prefix,
)
from dossr_jax.pytorch.tables.release import HINT_PREFIX
from dossr_jax.systems.base import Model
from dossr_jax.systems.diffbir.config import DiffBIRConfig
from dossr_jax.systems.files import BUFFER_PREFIX
from dossr_jax.systems.sd21 import check_as_sd21, read_sd21, sd21_table
from dossr_jax.systems.swinir.keys import BUFFERS, infer_swinir, swinir_table
from dossr_jax.weights import Lazy

# As in the one large file of version 1.
CLEANER_PREFIX = RRDB_PREFIX


def diffbir_table(config: DiffBIRConfig) -> list[Row]:
    """List the rows of all networks, with the prefixes of the one large file."""
    rows = sd21_table(config)
    rows += with_prefix(control_table(config.unet), CONTROL_PREFIX, "control.")
    if isinstance(config.cleaner, RRDBConfig):
        cleaner = rrdb_table(config.cleaner)
    else:
        cleaner = swinir_table(config.cleaner)
    return rows + with_prefix(cleaner, CLEANER_PREFIX, "cleaner.")


def read(state: State, variant: str | None, *, versions: Mapping[str, Mapping[str, Any]]) -> Model:
    """Read a model of a version, which has the fields that `versions` say.

    Raises:
      UserError: listing every missing, extra and misshapen key; an RRDBNet that is not of version
        2, or the other way round.
    """
    assert variant is not None
    cleaner = state.below(CLEANER_PREFIX)
    if cleaner.has("body.") != (variant == "v2"):
        raise UserError(
            f"{state.source}: not DiffBIR {variant}: its first network is "
            f"{'an RRDBNet, as in v2' if variant != 'v2' else 'no RRDBNet'}; give --variant"
        )
    network = infer_rrdb(cleaner) if variant == "v2" else infer_swinir(cleaner)
    state = _without_hint_encoder(state)
    state = state.select(
        lambda name: (
            not (
                name.startswith(CLEANER_PREFIX)
                and BUFFERS.fullmatch(name.removeprefix(CLEANER_PREFIX))
            )
        )
    )
    parts = read_sd21(state)
    config = DiffBIRConfig(
        unet=parts.unet, vae=parts.vae, text=parts.text, cleaner=network, **versions[variant]
    )
    tensors = to_ours(diffbir_table(config), parts.others)
    return Model(config, {**tensors, **parts.buffers}, parts.notes)


def _without_hint_encoder(state: State) -> State:
    """Without the copy of the VAE's encoder that version 1's large file has.

    Raises:
      UserError: it is no copy.
    """
    for name, tensor in state.below(HINT_PREFIX).tensors.items():
        twin = state.tensors.get(VAE_PREFIX + name)
        if twin is None or twin.load().tobytes() != tensor.load().tobytes():
            raise UserError(
                f"{state.source}: {HINT_PREFIX}{name} differs from the VAE's, which DiffBIR's does "
                "not; copy or download the file again"
            )
    return state.select(lambda name: not name.startswith(HINT_PREFIX))


def export(model: Model) -> dict[str, Lazy]:
    """All tensors under PyTorch's names, with the prefixes of the one large file.

    Raises:
      UserError: a network that these keys do not tell.
    """
    check_as_sd21(model.config)
    buffers = {
        name.removeprefix(BUFFER_PREFIX): tensor
        for name, tensor in model.tensors.items()
        if name.startswith(BUFFER_PREFIX)
    }
    context = ("context", "negative_context")
    learned = {
        name: tensor
        for name, tensor in model.tensors.items()
        if not name.startswith(BUFFER_PREFIX) and name not in context
    }
    return {**buffers, **to_torch(diffbir_table(model.config), State("the model", learned))}
