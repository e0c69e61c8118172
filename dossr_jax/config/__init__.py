"""Frozen configurations of networks, process, sampler and training, checked where they are made.

Every network is built from exactly one of these classes, and a saved model carries its
:class:`DoSSRConfig` as JSON, so that weights and shapes never part.
"""

from dossr_jax.config.base import ConfigError, configuration, from_json, to_json
from dossr_jax.config.model import (
    TASKS,
    DoSSRConfig,
    LatentConfig,
    ModelConfig,
    RRDBConfig,
    Task,
    TextConfig,
    UNetConfig,
    VAEConfig,
    read_model_config,
)
from dossr_jax.config.sampler import MAX_STEPS, SAMPLERS, ProcessConfig, SamplerConfig
from dossr_jax.config.sizes import AREA, FILLED, UPSCALE
from dossr_jax.config.train import (
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    StageConfig,
    TrainConfig,
)

__all__ = [
    "AREA",
    "FILLED",
    "MAX_STEPS",
    "SAMPLERS",
    "TASKS",
    "UPSCALE",
    "ConfigError",
    "DataConfig",
    "DoSSRConfig",
    "LatentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProcessConfig",
    "RRDBConfig",
    "SamplerConfig",
    "StageConfig",
    "Task",
    "TextConfig",
    "TrainConfig",
    "UNetConfig",
    "VAEConfig",
    "configuration",
    "from_json",
    "read_model_config",
    "to_json",
]
