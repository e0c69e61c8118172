"""What checkpoints on Stable Diffusion 2.1 share: its networks under LDM's names."""

from __future__ import annotations

from typing import NamedTuple

from dossr_jax.config import LatentConfig, ProcessConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import infer_text, infer_unet, infer_vae
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Row,
    text_table,
    unet_table,
    vae_table,
    with_prefix,
)
from dossr_jax.systems.files import BUFFER_PREFIX
from dossr_jax.weights import Lazy

EMA_PREFIX = "model_ema."


class Parts(NamedTuple):
    """A checkpoint taken apart.

    Attributes:
      unet, vae, text: configurations, read off the keys; text is None without a text tower.
      buffers: tensors that hold no learning, under our names.
      others: all other tensors, of Stable Diffusion and of whatever else is in it.
      notes: for the user.
    """

    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig | None
    buffers: dict[str, Lazy]
    others: State
    notes: tuple[str, ...]


def split_buffers(state: State) -> tuple[State, State]:
    """The tensors of a checkpoint that hold no learning, and all others."""
    known = {*release_buffers(ProcessConfig()), "scale_factor"}
    return state.select(lambda name: name in known), state.select(lambda name: name not in known)


def read_sd21(state: State, head_dim: int | None = None) -> Parts:
    """Take apart a checkpoint with Stable Diffusion 2.1 in it; EMA weights are left out.

    Raises:
      UserError: the keys are not those of SD 2.x.
    """
    buffers, others = split_buffers(state)
    learned = others.select(lambda name: not name.startswith(EMA_PREFIX))
    averages = len(others.tensors) - len(learned.tensors)
    return Parts(
        infer_unet(learned.below(UNET_PREFIX), head_dim),
        infer_vae(learned.below(VAE_PREFIX)),
        infer_text(learned.below(TEXT_PREFIX)) if learned.has(TEXT_PREFIX) else None,
        {f"{BUFFER_PREFIX}{name}": t for name, t in buffers.tensors.items()},
        learned,
        (f"{averages} {EMA_PREFIX}* keys left out: EMA weights",) if averages else (),
    )


def sd21_table(config: LatentConfig) -> list[Row]:
    """List the rows of Stable Diffusion's networks."""
    rows = with_prefix(unet_table(config.unet), UNET_PREFIX, "unet.")
    rows += with_prefix(vae_table(config.vae), VAE_PREFIX, "vae.")
    if config.text is not None:
        rows += with_prefix(text_table(config.text), TEXT_PREFIX, "text.")
    return rows


def check_as_sd21(config: LatentConfig) -> None:
    """Raise UserError for networks that differ from SD 2.1's in what PyTorch's keys do not tell."""
    for name, network, usual, fields in (
        ("unet", config.unet, UNetConfig(), ("head_dim", "norm_groups")),
        ("vae", config.vae, VAEConfig(), ("norm_groups", "patch_size")),
    ):
        for field in fields:
            value, expected = getattr(network, field), getattr(usual, field)
            if value != expected:
                raise UserError(
                    f"this model cannot be written in that form: its {name}.{field} is {value}, "
                    f"SD 2.1's {expected}"
                )
