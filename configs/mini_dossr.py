"""DoSSR's ControlNet of dossr-mini with the prior's decoder; fifth of the six runs.

    python train.py --config mini_dossr --data PAIRS --output RUN --init PRIOR_MODEL

Times are drawn from those that a sampler visits: the many beyond t1, where sigma / alpha inflates
the error by up to 15, would take most of a small model's capacity.
"""

from dossr_jax.config import OptimizerConfig, TrainConfig
from dossr_jax.training.stages import DoSSRStage

from .mini import DATA, MODEL

CONFIG = TrainConfig(
    stage=DoSSRStage(times="visited", prompts="both", learn_decoder=True),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=6e-4, betas=(0.9, 0.99), ema_decay=0.995),
    steps=700,
)
