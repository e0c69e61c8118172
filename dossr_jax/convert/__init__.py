"""Checkpoints in and out: PyTorch's keys and files on one side, our model files on the other.

`python -m dossr_jax.convert` is the command line of it.
"""

from dossr_jax.convert.infer import config_from_release_yaml
from dossr_jax.convert.release import load_release
from dossr_jax.convert.rrdb import find_realesrgan, load_rrdb, preprocessor

__all__ = [
    "config_from_release_yaml",
    "find_realesrgan",
    "load_release",
    "load_rrdb",
    "preprocessor",
]
