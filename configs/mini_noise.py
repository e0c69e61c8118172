"""For comparisons: a ControlNet of dossr-mini that starts from noise, as they are usually trained.

    python train.py --config mini_noise --data DATA --output RUN --init PRIOR_MODEL

Data, prior, optimiser and steps are those of mini_dossr; the loss is the usual one, of noise.
"""

import dataclasses

from dossr_jax.training.stages import DoSSRStage

from .mini_dossr import CONFIG as MINI_DOSSR

CONFIG = dataclasses.replace(
    MINI_DOSSR, stage=DoSSRStage(start="noise", prompts="both", learn_decoder=True)
)
