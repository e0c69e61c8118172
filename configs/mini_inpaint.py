"""A small model that fills holes in photos of any size, which they keep.

python train.py --config mini_inpaint --data DATA --output RUN \
    --init dossr_jax/assets/dossr-mini.safetensors
"""

from .mini_task import mini_task

CONFIG = mini_task("inpaint", "none")
