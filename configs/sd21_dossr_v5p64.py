"""DoSSR on SD 2.1 on 64 chips of a TPU v5p pod (4x4x4): 8 crops of 512 px a chip of 95 GiB.

python -m dossr_jax.plan --config sd21_dossr_v5p64 --topology v5p:4x4x4
python train.py --config sd21_dossr_v5p64 --data DATA --output RUN --init initial.safetensors
"""

import dataclasses

from .sd21_dossr import CONFIG as ONE_GPU

CONFIG = dataclasses.replace(
    ONE_GPU,
    data=dataclasses.replace(ONE_GPU.data, batch=512),
    parallel=dataclasses.replace(ONE_GPU.parallel, fsdp=4),
)
