"""A small model that takes the traces of JPEG out of photos of any size, which they keep.

python train.py --config mini_deblock --data DATA --output RUN \
    --init dossr_jax/assets/dossr-mini.safetensors
"""

from .mini_task import mini_task

CONFIG = mini_task("deblock", "residual")
