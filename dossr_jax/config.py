"""Frozen configurations of the networks and of the diffusion process.

Every network is built from exactly one of these classes, and a saved model carries its
:class:`DoSSRConfig` as JSON, so that weights and shape never part. This module imports nothing
of the project.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

ETA_NAMES = ("trunc_12", "trunc_13", "trunc_23")


class ConfigError(ValueError):
    """A configuration that cannot describe a network; the message names field and remedy."""


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """SD 2.1 UNet (defaults: SD 2.1-base sizes).

    `attention_levels[i]` says whether level `i` (0 = full resolution) has transformers; None is
    SD's rule, every level but the last. The middle always has one.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[bool, ...] | None = None
    head_dim: int = 64
    context_dim: int = 1024
    transformer_depth: int = 1
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.attention_levels is None:
            levels = len(self.channel_mult)
            object.__setattr__(self, "attention_levels", (True,) * (levels - 1) + (False,))
        _require(
            len(self.attention_levels) == len(self.channel_mult),
            f"attention_levels has {len(self.attention_levels)} entries, "
            f"channel_mult {len(self.channel_mult)}: give one flag a level",
        )
        for mult in self.channel_mult:
            channels = mult * self.model_channels
            _require(
                channels % self.norm_groups == 0 and channels % self.head_dim == 0,
                f"{channels} channels divide neither into {self.norm_groups} norm groups "
                f"nor into heads of {self.head_dim}",
            )

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def downscale(self) -> int:
        """Factor between the latent and the coarsest level: latent sides are multiples of it."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """SD autoencoder (defaults: SD 2.1). `patch_size` > 1 folds pixels into channels first."""

    in_channels: int = 3
    z_channels: int = 4
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32
    patch_size: int = 1
    scale_factor: float = 0.18215

    def __post_init__(self) -> None:
        for mult in self.channel_mult:
            _require(
                mult * self.base_channels % self.norm_groups == 0,
                f"{mult * self.base_channels} VAE channels do not divide into "
                f"{self.norm_groups} norm groups",
            )

    @property
    def downscale(self) -> int:
        """Pixels a latent position spans, per side (8 for SD)."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RRDBConfig:
    """RRDBNet (defaults: Real-ESRGAN x4plus).

    `scale` 4 feeds the image as it is, 2 and 1 fold 2x2 and 4x4 pixels into channels first; the
    trunk always enlarges its input 4 times. `upsampler` "nearest" is the published one;
    "shuffle" makes all sub-pixels at trunk resolution in one convolution and adds the
    bicubically enlarged input, which is several times faster on a CPU. With it, `patch_size` folds
    that many more pixels a side into channels.
    """

    in_channels: int = 3
    out_channels: int = 3
    num_features: int = 64
    num_blocks: int = 23
    growth: int = 32
    scale: int = 4
    upsampler: Literal["nearest", "shuffle"] = "nearest"
    patch_size: int = 1

    def __post_init__(self) -> None:
        _require(
            self.patch_size == 1 or self.upsampler == "shuffle",
            f"RRDBNet patch_size {self.patch_size} needs the 'shuffle' upsampler",
        )
        _require(self.scale in (1, 2, 4), f"RRDBNet scale is 1, 2 or 4, not {self.scale}")
        _require(
            self.upsampler in ("nearest", "shuffle"),
            f"RRDBNet upsampler is 'nearest' or 'shuffle', not {self.upsampler!r}",
        )

    @property
    def fold(self) -> int:
        """Side of the pixel block folded into channels."""
        return 4 // self.scale * self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """OpenCLIP text tower (defaults: ViT-H/14 as SD 2.1 uses it).

    `layers` are stored, the last `skip_layers` of them do not run ("penultimate").
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 1024
    layers: int = 24
    heads: int = 16
    skip_layers: int = 1
    projection_dim: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Noise schedule ("scaled linear" beta), shifting sequence and parametrisation.

    `lr_skip`, from 0 (published) to below 1, is the part of the data prediction that is the LR
    latent itself where eta is 1, and in proportion to eta elsewhere (docs/method.md).
    """

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    eta: str = "trunc_12"
    lr_skip: float = 0.0

    def __post_init__(self) -> None:
        _require(self.eta in ETA_NAMES, f"eta is one of {', '.join(ETA_NAMES)}, not {self.eta!r}")
        _require(0 <= self.lr_skip < 1, f"lr_skip is from 0 to below 1, not {self.lr_skip}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a model is sampled unless the caller says otherwise (defaults: as published).

    Fields mean what those of the same name in dossr_jax.pipeline.Settings do.
    """

    steps: int = 5
    order: int = 3
    solver: Literal["sde", "ode", "span"] = "sde"
    grid: Literal["uniform", "log_lambda", "jump", "span"] = "uniform"
    start: Literal["lr", "noise"] = "lr"
    final_denoise: bool = False
    fidelity: float = 0.0
    detail: float = 1.0
    color_fix: Literal["wavelet", "residual", "adain", "none"] = "wavelet"


# Samplers by name: what each sets of a SamplerConfig. Steps and fidelity are the caller's.
SCHEMES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "published": {"order": 3, "solver": "sde", "grid": "uniform", "final_denoise": False},
        "span": {"order": 2, "solver": "span", "grid": "span", "final_denoise": False},
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoSSRConfig:
    """A whole model: UNet, its ControlNet, VAE, pre-restorer, process and stored embeddings.

    `shared_encoder`: the hint encoder equals the VAE encoder, is not stored and runs once.
    `text` is None where the text tower does not travel with the weights. `refiner`: a second
    network of the pre-restorer's shape goes over the image of the colour fix; none as published.
    `context_length` is the number of tokens of the stored prompt embeddings.
    """

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    rrdb: RRDBConfig = RRDBConfig()
    process: ProcessConfig = ProcessConfig()
    sampler: SamplerConfig = SamplerConfig()
    text: TextConfig | None = None
    refiner: bool = False
    shared_encoder: bool = True
    context_length: int = 77
    prompt: str = "clean, high-resolution, 8k"
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        _require(
            self.unet.in_channels == self.vae.z_channels == self.unet.out_channels,
            f"UNet in/out channels {self.unet.in_channels}/{self.unet.out_channels} and latent "
            f"channels {self.vae.z_channels} differ",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a configuration, JSON-ready but for tuples (JSON makes them lists)."""
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    """JSON text of a configuration; :func:`from_json` is its inverse."""
    return json.dumps(to_dict(config), sort_keys=True)


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Build the frozen dataclass `cls` from a nested mapping; unknown keys raise ConfigError."""
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    _require(not unknown, f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    return cls(**{name: _coerce(hints[name], value) for name, value in values.items()})


def from_json(cls: type, text: str) -> Any:
    """Build `cls` from :func:`to_json` text; malformed text raises ConfigError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"configuration is not JSON: {error}") from error
    _require(isinstance(values, dict), "configuration is not a JSON object")
    return from_dict(cls, values)


def _coerce(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a training batch is: `batch` samples over all devices and accumulated parts together.

    `crop` is the side of an HR crop in pixels. A sample is cut from its image scaled by a factor
    drawn from `scale_range` (never below the crop), flipped and turned where `augment`. Images
    without an LR partner are degraded on the device by one of `presets`, each as likely.
    `hold_out`: one image in so many, chosen by a hash of its name, is for validation.
    """

    crop: int = 512
    batch: int = 16
    presets: tuple[str, ...] = ("realesrgan",)
    scale_range: tuple[float, float] = (0.5, 1.0)
    augment: bool = True
    hold_out: int = 20
    workers: int = 1
    prefetch: int = 4

    def __post_init__(self) -> None:
        _require(self.batch >= 1 and self.crop >= 1, "batch and crop are 1 or more")
        _require(len(self.presets) > 0, "presets names no degradation")
        _require(min(self.workers, self.prefetch) >= 0, "workers and prefetch are 0 or more")
        low, high = self.scale_range
        _require(0 < low <= high, f"scale_range {low}, {high} is not a range of positive factors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW after clipping; the rate warms up, then follows a cosine to zero or stays.

    `accumulate` splits a batch into so many parts, run one after the other. `ema_decay` 0 keeps
    no average.
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        _require(self.schedule in ("cosine", "constant"), f"no schedule {self.schedule!r}")
        _require(self.accumulate >= 1, "accumulate is 1 or more")
        _require(0 <= self.ema_decay < 1, "ema_decay is from 0 to below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run is laid out on devices and computed.

    Parameters and optimiser state are split over `fsdp` devices, batches over all; the number of
    devices is a multiple of it. What learns is kept in float32, what is frozen in `frozen_dtype`;
    `dtype` is that of the arithmetic. `remat`: what the backward pass recomputes, "none", all
    but products of matrices ("dots"), or all inside a stage ("full").
    """

    fsdp: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self) -> None:
        _require(self.fsdp >= 1, "fsdp is 1 or more")
        for name in ("dtype", "frozen_dtype"):
            value = getattr(self, name)
            known = value in ("float32", "bfloat16")
            _require(known, f"{name} is float32 or bfloat16, not {value!r}")
        _require(self.remat in ("none", "dots", "full"), f"no remat policy {self.remat!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of one stage.

    `start`: of the sampler that the DoSSR stage trains for: "lr", the shifted process as published,
    or "noise", a ControlNet trained the usual way, on plain diffusion, for comparisons.
    `times`: which t the DoSSR stage draws from, "all" T as published, the first t1 that a sampler
    of several steps visits ("visited"), or t1 - 1 alone, where a one-step model starts ("start").
    `start_share` of the samples take t1 - 1 in any case, as every sampler's first step does.
    `learn_decoder` lets that stage train the UNet's decoder (up levels and output) as well,
    `learn_vae_decoder` the autoencoder's decoder, which needs an image term in the loss;
    `lora_rank` > 0 low-rank updates of all attention projections of the UNet. `prompts`: the
    "empty" prompt as published, or "both" stored ones, as likely.
    `coarse_weights` add to the L1 losses of the pre-restorer, DoSSR and the refiner those of the
    error averaged over 2x2, 4x4, ... places; `image_weight` and `ssim_weight` add L1 and 1 - SSIM
    of DoSSR's decoded prediction, `ssim_weight` also that of the refined image. The refiner learns
    to make HR images with `sharpen` times an unsharp mask added. All are none as published.
    `save_every`, `validate_every`, `log_every` count steps; `keep` checkpoints are kept.
    """

    stage: Literal["rrdb", "vae", "prior", "dossr", "refiner"]
    model: DoSSRConfig = DoSSRConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: int = 50_000
    kl_weight: float = 3e-4
    coarse_weights: tuple[float, ...] = ()
    image_weight: float = 0.0
    ssim_weight: float = 0.0
    sharpen: float = 0.0
    start: Literal["lr", "noise"] = "lr"
    times: Literal["all", "visited", "start"] = "all"
    start_share: float = 0.0
    prompts: Literal["empty", "both"] = "empty"
    learn_decoder: bool = False
    learn_vae_decoder: bool = False
    lora_rank: int = 0
    seed: int = 0
    save_every: int = 1000
    keep: int = 3
    validate_every: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        stages = ("rrdb", "vae", "prior", "dossr", "refiner")
        _require(self.stage in stages, f"no stage {self.stage!r}")
        _require(
            self.stage != "refiner" or self.model.refiner,
            'stage "refiner" trains the refiner of a model with model.refiner true',
        )
        _require(self.start in ("lr", "noise"), f"no start {self.start!r}")
        _require(self.times in ("all", "visited", "start"), f"no times {self.times!r}")
        _require(
            self.start == "lr" or (self.stage == "dossr" and self.times == "all"),
            'start "noise" is for stage "dossr" with times "all"',
        )
        _require(self.prompts in ("empty", "both"), f"no prompts {self.prompts!r}")
        multiple = self.optimizer.accumulate
        _require(
            self.data.batch % multiple == 0,
            f"data.batch {self.data.batch} does not divide into {multiple} accumulated parts",
        )
        unit = self.model.vae.downscale * self.model.unet.downscale
        _require(
            self.data.crop % unit == 0,
            f"data.crop {self.data.crop} is not a multiple of {unit}, the model's coarsest pixel",
        )
        shifted = self.stage == "dossr" and self.start == "lr"
        _require(
            shifted or not (self.start_share or self.image_weight),
            'start_share and image_weight are for stage "dossr" with start "lr"',
        )
        _require(
            shifted or self.stage == "refiner" or not self.ssim_weight,
            'ssim_weight is for stages "refiner" and "dossr" with start "lr"',
        )
        _require(
            self.sharpen == 0 or (self.stage == "refiner" and self.sharpen > 0),
            f'sharpen is 0 or more and for stage "refiner" alone, not {self.sharpen}',
        )
        _require(0 <= self.start_share <= 1, f"start_share is from 0 to 1, not {self.start_share}")
        _require(
            shifted or self.stage in ("rrdb", "refiner") or not self.coarse_weights,
            'coarse_weights are for stages "rrdb", "refiner" and "dossr" with start "lr"',
        )
        pixel = self.model.vae.downscale if self.stage == "dossr" else 1
        _require(
            self.data.crop % (pixel << len(self.coarse_weights)) == 0,
            f"coarse_weights: data.crop {self.data.crop} does not halve that often",
        )
        _require(
            not self.ssim_weight or (self.data.crop >= 44 and self.data.crop % 4 == 0),
            f"ssim_weight: SSIM at three sizes needs crops of 44 px or more, not {self.data.crop}",
        )
        _require(
            (shifted and self.has_image_term) or not self.learn_vae_decoder,
            "learn_vae_decoder needs image_weight or ssim_weight, or nothing says what to learn",
        )
        _require(
            self.stage == "dossr" or not (self.learn_decoder or self.lora_rank),
            f"learn_decoder and lora_rank are for stage 'dossr', not {self.stage!r}",
        )

    @property
    def has_image_term(self) -> bool:
        """Whether the DoSSR stage's loss looks at the decoded prediction."""
        return bool(self.image_weight or self.ssim_weight)
