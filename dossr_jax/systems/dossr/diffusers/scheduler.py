"""Process and sampler of a model as the configuration of a scheduler of diffusers, both ways.

Fields that diffusers' own schedulers have keep their names, so that its other schedulers read
them, too; the rest are those of ProcessConfig and SamplerConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dossr_jax.config import ConfigError, ProcessConfig, SamplerConfig

CLASS = "DoSSRScheduler"
BETA_SCHEDULE = "scaled_linear"
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
_PROCESS = {
    "num_train_timesteps": "timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "rescale_betas_zero_snr": "zero_snr",
    "eta_schedule": "eta",
}
_SAMPLER = {
    "num_inference_steps": "steps",
    "solver_order": "order",
    "solver": "solver",
    "grid": "grid",
    "start": "start",
    "final_denoise": "final_denoise",
    "fidelity": "fidelity",
}


def scheduler_fields(process: ProcessConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """Fields of a DoSSRScheduler that samples as a model does, guidance and colours apart."""
    names = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return {
        "beta_schedule": BETA_SCHEDULE,
        "prediction_type": names[process.prediction],
        **{theirs: getattr(process, ours) for theirs, ours in _PROCESS.items()},
        **{theirs: getattr(sampler, ours) for theirs, ours in _SAMPLER.items()},
    }


def read_fields(fields: Mapping[str, Any]) -> tuple[ProcessConfig, SamplerConfig]:
    """The inverse of :func:`scheduler_fields`; what is missing keeps its default.

    Raises:
      ConfigError: a value that DoSSR's process or sampler cannot have.
    """
    schedule = fields.get("beta_schedule", BETA_SCHEDULE)
    if schedule != BETA_SCHEDULE:
        raise ConfigError(f"beta_schedule {schedule!r}: must be {BETA_SCHEDULE}, as SD's")
    prediction = fields.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        known = " or ".join(_PREDICTIONS)
        raise ConfigError(f"prediction_type {prediction!r}: must be {known}")
    process = {ours: fields[theirs] for theirs, ours in _PROCESS.items() if theirs in fields}
    sampler = {ours: fields[theirs] for theirs, ours in _SAMPLER.items() if theirs in fields}
    if sampler.get("solver") == "chain":
        raise ConfigError("solver chain: is ResShift's; choose sde, ode or asinh")
    kind: Any = _PREDICTIONS[prediction]
    return ProcessConfig(**process, prediction=kind), SamplerConfig(**sampler)
