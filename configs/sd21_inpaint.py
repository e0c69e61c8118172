"""Holes filled in photos that keep their size, on SD 2.1 and one GPU of 80 GB.

    python train.py --config sd21_inpaint --data DATA --output RUN --init initial.safetensors

The file to start from, batch and schedule are those of sd21_dossr.
"""

from .sd21_task import sd21_task

CONFIG = sd21_task("inpaint", "none")
