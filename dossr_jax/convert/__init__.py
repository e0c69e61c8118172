"""Conversion between PyTorch's checkpoints and our model files.

The command line is `python -m dossr_jax.convert`.
"""

from dossr_jax.systems.dossr.release import load_release
from dossr_jax.systems.rrdb import load_rrdb, preprocessor

__all__ = ["load_release", "load_rrdb", "preprocessor"]
