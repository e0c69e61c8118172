"""Conversion between PyTorch's checkpoints and modules, and ours.

The command line is `python -m dossr_jax.convert`.
"""

from dossr_jax.convert.modules import TorchNetworks, from_diffusers, to_diffusers
from dossr_jax.systems.dossr.diffusers import Networks
from dossr_jax.systems.dossr.release import load_release
from dossr_jax.systems.rrdb import load_rrdb, preprocessor

__all__ = [
    "Networks",
    "TorchNetworks",
    "from_diffusers",
    "load_release",
    "load_rrdb",
    "preprocessor",
    "to_diffusers",
]
