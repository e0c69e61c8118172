"""Restoration for users: `Upscaler` and its `Settings`. The host side of dossr_jax.restore."""

from dossr_jax.pipeline.settings import Settings, make_settings
from dossr_jax.pipeline.upscaler import BUILT_IN, DEFAULT_TILE, DTYPES, Restored, Upscaler

__all__ = [
    "BUILT_IN",
    "DEFAULT_TILE",
    "DTYPES",
    "Restored",
    "Settings",
    "Upscaler",
    "make_settings",
]
