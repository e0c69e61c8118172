"""DoSSR on SD 2.1 on a TPU v6e-256 slice (16x16): 4 crops of 512 px a chip of 32 GiB.

python -m dossr_jax.plan --config sd21_dossr_v6e256 --topology v6e:16x16
python train.py --config sd21_dossr_v6e256 --data DATA --output RUN --init initial.safetensors
"""

import dataclasses

from .sd21_dossr import CONFIG as ONE_GPU

CONFIG = dataclasses.replace(
    ONE_GPU,
    data=dataclasses.replace(ONE_GPU.data, batch=1024),
    parallel=dataclasses.replace(ONE_GPU.parallel, fsdp=16),
)
