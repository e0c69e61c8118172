"""DoSSR on SD 2.1 as published, on one GPU of 80 GB: the ControlNet alone learns.

    python -m dossr_jax.convert sd21/ initial.safetensors --rrdb RRDB_FILE
    python train.py --config sd21_dossr --data DATA --output RUN --init initial.safetensors

512 px crops, batch 16, L1 on x0, AdamW at 1e-4 held constant. Arithmetic and frozen weights are
in bfloat16, what learns is kept in float32.
"""

from dossr_jax.config import DataConfig, OptimizerConfig, ParallelConfig, TrainConfig
from dossr_jax.training.stages import DoSSRStage

CONFIG = TrainConfig(
    stage=DoSSRStage(),
    data=DataConfig(crop=512, batch=16, workers=8, prefetch=8),
    optimizer=OptimizerConfig(
        learning_rate=1e-4, schedule="constant", warmup=500, ema_decay=0.9999
    ),
    parallel=ParallelConfig(dtype="bfloat16", frozen_dtype="bfloat16", remat="full"),
    steps=50_000,
)
