"""DoSSR's ControlNet of dossr-mini, on the frozen prior.

    python train.py --config mini_dossr --data BANK --output RUN --init PRIOR_MODEL --minutes 28

Two cores of an AMD EPYC, shared with other work: 5584 steps in 28 minutes. Validation loss 0.338,
where the pre-restored latent itself is off by 0.454.
"""

from configs.mini import MODEL
from dossr_jax.config import TrainConfig, Window

CONFIG = TrainConfig(
    stage="dossr",
    model=MODEL,
    windows=(Window(size=16, batch=8), Window(size=32, batch=2, start=0.5)),
    learning_rate=6e-4,
    times="visited",
)
