"""Conversion between PyTorch's checkpoints and our model files.

The command line is `python -m dossr_jax.convert`.
"""

from dossr_jax.convert.efficientnet import feature_network
from dossr_jax.convert.infer import config_from_release_yaml
from dossr_jax.convert.release import load_release
from dossr_jax.convert.rrdb import find_packaged, load_rrdb, preprocessor

__all__ = [
    "config_from_release_yaml",
    "feature_network",
    "find_packaged",
    "load_release",
    "load_rrdb",
    "preprocessor",
]
