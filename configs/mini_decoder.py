"""DoSSR's ControlNet of dossr-mini together with the prior's decoder, after mini_dossr.

python train.py --config mini_decoder --data BANK --output RUN --init DOSSR_MODEL --minutes 18

Two cores of an AMD EPYC, shared with other work: 1998 steps in 18 minutes, validation loss from
0.338 to 0.332.
"""

import dataclasses

from configs.mini_dossr import CONFIG as MINI_DOSSR
from dossr_jax.config import Window

CONFIG = dataclasses.replace(
    MINI_DOSSR,
    windows=(Window(size=16, batch=8), Window(size=32, batch=2, start=0.6)),
    learn_decoder=True,
)
