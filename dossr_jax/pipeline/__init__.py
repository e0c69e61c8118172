"""Restoration for users: `Upscaler` and its `Settings`. The host side of dossr_jax.restore."""

from dossr_jax.pipeline.settings import MAX_STEPS, Settings, choices
from dossr_jax.pipeline.upscaler import BUILT_IN, DEFAULT_TILE, DTYPES, Restored, Upscaler

__all__ = [
    "BUILT_IN",
    "DEFAULT_TILE",
    "DTYPES",
    "MAX_STEPS",
    "Restored",
    "Settings",
    "Upscaler",
    "choices",
]
