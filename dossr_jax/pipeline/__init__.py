"""Restoration for users: `Upscaler` and its `Settings`. The host side of dossr_jax.restore."""

from dossr_jax.pipeline.settings import Settings, make_settings
from dossr_jax.pipeline.upscaler import DEFAULT_TILE, DTYPES, MODELS, Restored, Upscaler

__all__ = [
    "DEFAULT_TILE",
    "DTYPES",
    "MODELS",
    "Restored",
    "Settings",
    "Upscaler",
    "make_settings",
]
