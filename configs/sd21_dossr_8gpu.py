"""DoSSR on SD 2.1 on a node of 8 GPUs: sd21_dossr at batch 128, optimiser state split over all.

python train.py --config sd21_dossr_8gpu --data DATA --output RUN --init initial.safetensors
"""

import dataclasses

from .sd21_dossr import CONFIG as ONE_GPU

CONFIG = dataclasses.replace(
    ONE_GPU,
    data=dataclasses.replace(ONE_GPU.data, batch=128),
    parallel=dataclasses.replace(ONE_GPU.parallel, fsdp=8),
)
