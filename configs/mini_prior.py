"""Diffusion prior of dossr-mini.

    python train.py --config mini_prior --data BANK --output RUN --init RRDB_MODEL --minutes 20

Two cores of an AMD EPYC, shared with other work: 2162 steps in 20 minutes, two of them for
latents; validation loss 0.243.
"""

from configs.mini import MODEL
from dossr_jax.config import TrainConfig, Window

CONFIG = TrainConfig(
    stage="prior",
    model=MODEL,
    windows=(Window(size=16, batch=8), Window(size=32, batch=2, start=0.5)),
    learning_rate=1e-3,
)
