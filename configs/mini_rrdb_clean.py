"""The same pre-restorer learns to keep clean pictures too; third of the six runs.

python train.py --config mini_rrdb_clean --data DATA --output RUN --init RRDB_MODEL
"""

import dataclasses

from .mini import DATA
from .mini_rrdb_adversarial import CONFIG as FIRST

CONFIG = dataclasses.replace(
    FIRST,
    stage=dataclasses.replace(FIRST.stage, start="", blocks=()),
    data=dataclasses.replace(DATA, batch=4),
    steps=750,
)
