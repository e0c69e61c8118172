"""The diffusion process and how a model is sampled: the one description of a sampler.

Command-line flags, the fields that users may set, the model file's header and the solver's table
all derive from :class:`SamplerConfig`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dossr_jax.config.base import ConfigError, configuration

MAX_STEPS = 50  # rows of the compiled solver table

Prediction = Literal["eps", "v"]
Eta = Literal["trunc_12", "trunc_13", "trunc_23"]
Order = Literal[1, 2, 3]
Solver = Literal["sde", "ode", "asinh"]
Chain = Literal["chain"]
TimeGrid = Literal["uniform", "asinh", "spaced"]
Start = Literal["lr", "noise"]
ColorFix = Literal["wavelet", "residual", "adain", "none"]


@configuration
class ProcessConfig:
    """Noise schedule ("scaled linear" beta), shifting sequence, and what the network predicts.

    `prediction`: the noise, or v = alpha eps - sigma x0 (arXiv 2202.00512). `zero_snr`: alpha is
    moved and scaled so that it is 0 at the last time (arXiv 2305.08891).
    """

    timesteps: Annotated[int, Field(ge=6)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.0120
    eta: Eta = "trunc_12"
    prediction: Prediction = "eps"
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.zero_snr and self.prediction == "eps":
            raise ConfigError(
                "zero_snr true: x is noise alone at the last time, of which eps says nothing; "
                "choose prediction v"
            )


@configuration
class SamplerConfig:
    """How a model is sampled. Defaults are the published sampler; see docs/samplers.md."""

    steps: int = Field(
        default=5, ge=1, le=MAX_STEPS, description=f"network evaluations, 1 to {MAX_STEPS}"
    )
    order: Order = Field(
        default=3, description="order of the solver; 1 is advised from 10 steps on"
    )
    solver: Literal[Solver, Chain] = Field(
        default="sde",
        description="sde: the domain-shift SDE, as published; ode: its probability-flow ODE; "
        "asinh: the same ODE, predictions interpolated in asinh(1/lambda); chain: ResShift's own",
    )
    grid: TimeGrid = Field(
        default="uniform",
        description="times uniform in t, as published; uniform in asinh(1/lambda), which spends "
        "few steps at high noise; or spaced from the first time to 0, as DDPM's with fewer steps",
    )
    start: Start = Field(
        default="lr",
        description="start from the noised LR latent, as published, or from pure noise: then "
        "sde of order 1 is DDPM and ode of order 1 DDIM; a model is trained for one of them",
    )
    final_denoise: bool = Field(
        default=False, description="return the last prediction, without the noise left at t = 0"
    )
    cfg_scale: float = Field(
        default=1.0,
        description="classifier-free guidance scale; 1 is off and costs nothing",
    )
    fidelity: float = Field(
        default=0.0, ge=0, le=1, description="0: free detail, 1: keep the pre-restored image"
    )
    color_fix: ColorFix = Field(
        default="wavelet",
        description="match colours to the pre-restored image: its low frequencies (wavelet), "
        "these without the autoencoder's error (residual), mean and deviation (adain), or none",
    )


# Named samplers: the fields that a name sets; steps, fidelity and the rest keep their values.
SAMPLERS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "published": {"order": 3, "solver": "sde", "grid": "uniform", "final_denoise": False},
        "asinh": {"order": 2, "solver": "asinh", "grid": "asinh", "final_denoise": False},
    }
)
