"""Networks and the whole model. Defaults are the sizes of SD 2.1-base and Real-ESRGAN x4plus."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat

from dossr_jax.config.base import ConfigError, configuration, from_json
from dossr_jax.config.sampler import ProcessConfig, SamplerConfig

Count = Annotated[int, Field(ge=1)]
# What a model of dossr_jax.systems.task undoes.
Task = Literal["denoise", "deblur", "deblock", "inpaint"]
TASKS: tuple[Task, ...] = get_args(Task)
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


def _check_groups(widths: list[int], groups: int, head_dim: int = 1) -> None:
    """Refuse channel counts that do not divide into norm groups and attention heads."""
    for channels in widths:
        if channels % groups or channels % head_dim:
            raise ConfigError(
                f"norm_groups {groups}: {channels} channels do not divide into {groups} norm groups"
                + (f" and heads of head_dim {head_dim}" if head_dim > 1 else "")
                + "; choose divisors of all channel counts"
            )


@configuration
class ModelConfig:
    """Base of the configurations of whole models. A subclass has a `system`, which names its kind.

    Subclasses register themselves by that name, so that a stored model finds its system.
    """

    known: ClassVar[dict[str, type[ModelConfig]]] = {}
    system: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(name := cls.__dict__.get("system"), str):
            ModelConfig.known[name] = cls

    @property
    def crop_multiple(self) -> int:
        """Sides of HR crops in training are multiples of it, in pixels."""
        return 4


def read_model_config(text: str) -> ModelConfig:
    """The configuration of a model of any system, from the JSON that :func:`to_json` wrote.

    Raises:
      ConfigError: malformed text, an unknown system, unknown fields or wrong values.
    """
    try:
        values = json.loads(text)
        name = values.get("system", "dossr")  # files written before there were others
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"not a configuration ({error})") from None
    if name not in ModelConfig.known:
        known = ", ".join(sorted(ModelConfig.known))
        raise ConfigError(f"system {json.dumps(name)}: unknown; there are {known}")
    return from_json(ModelConfig.known[name], text)


@configuration
class UNetConfig:
    """SD 2.1 UNet.

    `attention_levels[i]` says whether level `i` (0 = full resolution) has transformers; empty is
    SD's rule, every level but the last. The middle always has one.
    """

    in_channels: Count = 4
    out_channels: Count = 4
    model_channels: Annotated[int, Field(ge=2, multiple_of=2)] = 320
    channel_mult: Counts = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    attention_levels: tuple[bool, ...] = ()
    head_dim: Count = 64
    context_dim: Count = 1024
    transformer_depth: Count = 1
    norm_groups: Count = 32

    def __post_init__(self) -> None:
        if not self.attention_levels:
            levels = len(self.channel_mult)
            object.__setattr__(self, "attention_levels", (True,) * (levels - 1) + (False,))
        if len(self.attention_levels) != len(self.channel_mult):
            raise ConfigError(
                f"attention_levels {self.attention_levels}: give one flag per level, "
                f"{len(self.channel_mult)} for this channel_mult"
            )
        widths = [mult * self.model_channels for mult in self.channel_mult]
        _check_groups(widths, self.norm_groups, self.head_dim)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def downscale(self) -> int:
        """Factor between the latent and the coarsest level: latent sides are multiples of it."""
        return 2 ** (len(self.channel_mult) - 1)


@configuration
class VAEConfig:
    """SD autoencoder. `patch_size` > 1 folds pixels into channels first.

    `mid_attention` False leaves out the middle's attention, whose cost grows with the square of
    the number of latent positions.
    """

    in_channels: Count = 3
    z_channels: Count = 4
    base_channels: Count = 128
    channel_mult: Counts = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    norm_groups: Count = 32
    patch_size: Count = 1
    mid_attention: bool = True
    scale_factor: PositiveFloat = 0.18215

    def __post_init__(self) -> None:
        _check_groups([mult * self.base_channels for mult in self.channel_mult], self.norm_groups)

    @property
    def downscale(self) -> int:
        """Pixels per latent position along each side (8 for SD)."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def encoder_channels(self) -> int:
        """Channels that the encoder puts out: mean and log variance of the latent."""
        return 2 * self.z_channels


@configuration
class RRDBConfig(ModelConfig):
    """RRDBNet.

    `scale` 4 feeds the image as it is, 2 and 1 fold 2x2 and 4x4 pixels into channels first; the
    trunk always enlarges its input 4 times.
    """

    system: Literal["rrdb"] = "rrdb"
    in_channels: Count = 3
    out_channels: Count = 3
    num_features: Count = 64
    num_blocks: Count = 23
    growth: Count = 32
    scale: Literal[1, 2, 4] = 4

    @property
    def fold(self) -> int:
        """Side of the pixel block folded into channels."""
        return 4 // self.scale


@configuration
class TextConfig:
    """OpenCLIP text tower, ViT-H/14 as SD 2.1 uses it.

    `layers` are stored, the last `skip_layers` of them do not run ("penultimate").
    """

    vocab_size: Count = 49408
    context_length: Count = 77
    width: Count = 1024
    layers: Count = 24
    heads: Count = 16
    skip_layers: NonNegativeInt = 1
    projection_dim: NonNegativeInt = 1024

    def __post_init__(self) -> None:
        if self.skip_layers >= self.layers:
            raise ConfigError(f"skip_layers {self.skip_layers}: fewer than layers {self.layers}")
        if self.width % self.heads:
            raise ConfigError(f"heads {self.heads}: must divide width {self.width}")


@configuration
class LatentConfig(ModelConfig):
    """What the systems on Stable Diffusion 2.1 share: UNet, VAE, process, sampler and prompts.

    `text` is None where the text tower does not travel with the weights. `context_length` is the
    number of tokens of the stored prompt embeddings.
    """

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    process: ProcessConfig = ProcessConfig()
    sampler: SamplerConfig = SamplerConfig()
    text: TextConfig | None = None
    context_length: Count = 77
    prompt: str = "clean, high-resolution, 8k"
    negative_prompt: str = ""

    @property
    def crop_multiple(self) -> int:
        """The pixels per position of the UNet's coarsest level."""
        return self.vae.downscale * self.unet.downscale

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels"):
            channels = getattr(self.unet, name)
            if channels != self.vae.z_channels:
                raise ConfigError(
                    f"unet.{name} {channels}: must equal vae.z_channels {self.vae.z_channels}"
                )


@configuration
class DoSSRConfig(LatentConfig):
    """DoSSR: a ControlNet and a pre-restorer beside the networks of Stable Diffusion.

    `shared_encoder`: the hint encoder equals the VAE encoder, is not stored and runs once.
    """

    system: Literal["dossr"] = "dossr"
    rrdb: RRDBConfig = RRDBConfig()
    shared_encoder: bool = True
