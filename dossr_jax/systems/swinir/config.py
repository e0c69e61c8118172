"""The sizes of a SwinIR. Defaults are those of the M model for real-world x4."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dossr_jax.config import ConfigError, ModelConfig, configuration
from dossr_jax.config.model import Count, Counts

Residual = Literal["1conv", "3conv"]


@configuration
class SwinIRConfig(ModelConfig):
    """SwinIR with the head of nearest-neighbour enlargements and convolutions.

    `depths` are the window blocks of each residual group, `residual` the convolutions that end a
    group: one, or a bottleneck of three. Images are folded by `unshuffle` first; the head enlarges
    the folded map `scale` times.
    """

    system: Literal["swinir"] = "swinir"
    embed_dim: Count = 180
    depths: Counts = (6, 6, 6, 6, 6, 6)
    heads: Count = 6
    window: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    mlp_ratio: Count = 2
    residual: Residual = "1conv"
    scale: Literal[4, 8] = 4
    unshuffle: Count = 1

    def __post_init__(self) -> None:
        if self.embed_dim % self.heads:
            raise ConfigError(f"heads {self.heads}: must divide embed_dim {self.embed_dim}")
        if self.residual == "3conv" and self.embed_dim % 4:
            raise ConfigError(f"embed_dim {self.embed_dim}: 3conv needs a multiple of 4")
        if self.scale % self.unshuffle:
            raise ConfigError(f"unshuffle {self.unshuffle}: must divide scale {self.scale}")

    @property
    def upscale(self) -> int:
        """Output pixels per input pixel along each side."""
        return self.scale // self.unshuffle

    @property
    def multiple(self) -> int:
        """Input sides are multiples of it."""
        return self.window * self.unshuffle
