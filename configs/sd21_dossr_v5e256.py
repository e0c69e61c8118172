"""DoSSR on SD 2.1 on a TPU v5e-256 slice (16x16): 2 crops of 512 px a chip.

    python -m dossr_jax.plan --config sd21_dossr_v5e256 --topology v5e:16x16
    python train.py --config sd21_dossr_v5e256 --data DATA --output RUN --init initial.safetensors

A chip has 16 GiB: what learns is split over 16 of them.
"""

import dataclasses

from .sd21_dossr import CONFIG as ONE_GPU

CONFIG = dataclasses.replace(
    ONE_GPU,
    data=dataclasses.replace(ONE_GPU.data, batch=512),
    parallel=dataclasses.replace(ONE_GPU.parallel, fsdp=16),
)
