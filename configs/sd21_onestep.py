"""The one-step DoSSR on SD 2.1, on one GPU of 80 GB.

    python -m dossr_jax.convert sd21/ initial.safetensors --rrdb realesrgan
    python train.py --config sd21_onestep --data DATA --output RUN --init initial.safetensors

Every sample is trained at t1 - 1, where one step starts, behind Real-ESRGAN as pre-restorer; the
UNet's decoder learns with the ControlNet, for one evaluation has to do all the work. Restore with
--steps 1 --order 1.
"""

import dataclasses

from dossr_jax.training.stages import DoSSRStage

from .sd21_dossr import CONFIG as SD21_DOSSR

CONFIG = dataclasses.replace(SD21_DOSSR, stage=DoSSRStage(times="first", learn_decoder=True))
