"""For comparisons: a ControlNet of dossr-mini that starts from noise, as they are usually trained.

    python train.py --config mini_noise --data DATA --output RUN --init PRIOR_MODEL

Data, prior, optimiser and steps are those of mini_dossr; the loss is the usual one, of noise, from
which the autoencoder's decoder has nothing to learn.
"""

import dataclasses

from configs.mini_dossr import CONFIG as MINI_DOSSR

CONFIG = dataclasses.replace(
    MINI_DOSSR,
    start="noise",
    times="all",
    start_share=0.0,
    coarse_weights=(),
    image_weight=0.0,
    ssim_weight=0.0,
    learn_vae_decoder=False,
)
