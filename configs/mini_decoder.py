"""DoSSR's ControlNet of dossr-mini together with the prior's decoder, after mini_dossr.

python train.py --config mini_decoder --data DATA --output RUN --init DOSSR_MODEL
"""

import dataclasses

from configs.mini_dossr import CONFIG as MINI_DOSSR

CONFIG = dataclasses.replace(MINI_DOSSR, learn_decoder=True, steps=4000)
