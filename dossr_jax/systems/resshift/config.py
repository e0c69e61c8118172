"""The networks, process and sampler of a ResShift model. Defaults are the journal model's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from dossr_jax.config import ConfigError, ModelConfig, SamplerConfig, VAEConfig, configuration
from dossr_jax.config.model import Count, Counts

JOURNAL_STEPS = 4


def published_sampler(steps: int) -> SamplerConfig:
    """The chain itself, without a colour fix."""
    return SamplerConfig(steps=steps, order=1, solver="chain", final_denoise=True, color_fix="none")


@configuration
class SwinUNetConfig:
    """UNet with window attention; predicts the clean latent.

    Beside the noisy latent it sees the low-resolution image, which has the latent's size. Level i
    was trained on maps of side image_size / 2^i; where that is no more than a window, its windows
    never shift. `num_res_blocks` are the encoder's per level; the decoder has one more.
    """

    image_size: Count = 64
    in_channels: Count = 3
    lq_channels: Count = 3
    model_channels: Annotated[int, Field(ge=2, multiple_of=2)] = 160
    channel_mult: Counts = (1, 2, 2, 4)
    num_res_blocks: Counts = (2, 2, 2, 2)
    swin_embed_dim: Count = 192
    swin_depth: Count = 2
    head_dim: Count = 32
    window: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    mlp_ratio: Count = 4
    norm_groups: Count = 32

    def __post_init__(self) -> None:
        if len(self.num_res_blocks) != len(self.channel_mult):
            raise ConfigError(
                f"num_res_blocks {self.num_res_blocks}: give one number per level, "
                f"{len(self.channel_mult)} for this channel_mult"
            )
        if self.swin_embed_dim % self.head_dim:
            raise ConfigError(
                f"head_dim {self.head_dim}: must divide swin_embed_dim {self.swin_embed_dim}"
            )
        for channels in (*self.widths, self.swin_embed_dim):
            if channels % self.norm_groups:
                raise ConfigError(f"norm_groups {self.norm_groups}: must divide {channels}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(mult * self.model_channels for mult in self.channel_mult)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def multiple(self) -> int:
        """Sides of the latent are multiples of it: whole windows at the coarsest level."""
        return self.window * 2 ** (len(self.channel_mult) - 1)

    def shifts(self, level: int) -> bool:
        """Whether every other block of a level (0 = full resolution) shifts its windows."""
        return self.image_size >> level > self.window


@configuration
class VQConfig(VAEConfig):
    """Autoencoder with a codebook in place of the posterior."""

    z_channels: Count = 3
    channel_mult: Counts = (1, 2, 4)
    scale_factor: PositiveFloat = 1.0
    codes: Count = 8192

    @property
    def encoder_channels(self) -> int:
        """Channels that the encoder puts out: the latent itself."""
        return self.z_channels


@configuration
class ResShiftProcess:
    """Chain from the clean latent to the low-resolution one plus noise.

    sqrt(eta) grows from min(min_noise / kappa, min_noise) to `eta_end` over the steps, as a
    geometric sequence in (t / (steps - 1))^power; noise at step t has deviation kappa sqrt(eta).
    `spacing`: whether fewer steps keep the first step or, as SinSR's single one, the last.
    """

    steps: Annotated[int, Field(ge=2)] = JOURNAL_STEPS
    kappa: PositiveFloat = 2.0
    power: PositiveFloat = 0.3
    eta_end: Annotated[float, Field(gt=0, lt=1)] = 0.99
    min_noise: PositiveFloat = 0.2
    spacing: Literal["leading", "trailing"] = "leading"


@configuration
class ResShiftConfig(ModelConfig):
    """ResShift with its autoencoder."""

    system: Literal["resshift"] = "resshift"
    unet: SwinUNetConfig = SwinUNetConfig()
    vq: VQConfig = VQConfig()
    process: ResShiftProcess = ResShiftProcess()
    sampler: SamplerConfig = published_sampler(JOURNAL_STEPS)

    @property
    def crop_multiple(self) -> int:
        """Whole windows at the coarsest level, in pixels of the image."""
        return self.vq.downscale * self.unet.multiple

    def __post_init__(self) -> None:
        if self.unet.in_channels != self.vq.z_channels:
            raise ConfigError(
                f"unet.in_channels {self.unet.in_channels}: must equal vq.z_channels "
                f"{self.vq.z_channels}"
            )
        if self.sampler.steps > self.process.steps:
            raise ConfigError(
                f"sampler.steps {self.sampler.steps}: at most process.steps {self.process.steps}"
            )
